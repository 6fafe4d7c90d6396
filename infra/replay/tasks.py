"""The figures of each task in a replay's report: the AUC of both scores, and what a value task expects.

The figures of a value task are those of common/value.py. Its concordance takes the place of the AUC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import value
from common.auc import auc
from serving.ranking import rank_scores
from streaming.declaration import Declaration

Array = NDArray[Any]


def both_aucs(labels: Array, served: Array, frozen: Array) -> dict[str, Any]:
    """The AUC of both scores, or None if all labels are equal."""
    some = 0 < labels.sum() < len(labels)
    return {
        "impressions": len(labels),
        "positives": int(labels.sum()),
        "served": round(float(auc(labels, served)), 4) if some else None,
        "frozen": round(float(auc(labels, frozen)), 4) if some else None,
    }


def both_values(labels: Array, values: Array, served: Array, frozen: Array) -> dict[str, Any]:
    """The figures of a value task by both scores: `mean` is the mean value of all impressions."""
    report: dict[str, Any] = {"impressions": len(labels), "positives": int(labels.sum())}
    for name, scores in (("served", served), ("frozen", frozen)):
        figures = value.figures(labels, values, scores, np.ones(len(labels)))
        rounded = {key: None if np.isnan(figure) else round(figure, 4) for key, figure in figures.items()}
        report |= {"mean": rounded["mean"], name: rounded["concordance"]}
        report |= {f"{key}_{name}": rounded[key] for key in ("calibration", "loss")}
    return report


def figures(
    declaration: Declaration, labels: Array, values: Array, served: Array, frozen: Array
) -> list[dict[str, Any]]:
    """The figures of each task. All arrays are [n, tasks]."""
    found = []
    for k, task in enumerate(declaration.tasks):
        of_task = labels[:, k].astype(int), served[:, k], frozen[:, k]
        if task in declaration.values:
            found.append({"task": task} | both_values(of_task[0], values[:, k], *of_task[1:]))
        else:
            found.append({"task": task} | both_aucs(*of_task))
    return found


def rank_aucs(declaration: Declaration, served: Array, frozen: Array, labels: Array) -> dict[str, Any]:
    """The AUCs of the judged task by the score that ranks; nothing if the source declares no `rank`."""
    if not declaration.rank:
        return {}
    ranks = (
        rank_scores(declaration, {task: scores[:, k] for k, task in enumerate(declaration.tasks)})
        for scores in (served, frozen)
    )
    return {"task": declaration.judged, **both_aucs(labels, *ranks)}


def table(tasks: list[dict[str, Any]]) -> list[str]:
    """The lines of the report's tables: one of all tasks, and one of the value tasks if there are any."""

    def shown(figure: float | None) -> str:
        return "-" if figure is None else f"{figure:.4f}"

    lines = ["| task | positives | AUC (value task: concordance) served | frozen |", "|---|---|---|---|"]
    lines += [f"| {t['task']} | {t['positives']} | {shown(t['served'])} | {shown(t['frozen'])} |" for t in tasks]
    if of_value := [t for t in tasks if "mean" in t]:
        lines += ["", "| value task | mean value | expected / mean: served, frozen | loss: served, frozen |"]
        lines += ["|---|---|---|---|"]
        for t in of_value:
            pairs = (f"{shown(t[f'{name}_served'])}, {shown(t[f'{name}_frozen'])}" for name in ("calibration", "loss"))
            lines.append(f"| {t['task']} | {shown(t['mean'])} | {' | '.join(pairs)} |")
    return lines
