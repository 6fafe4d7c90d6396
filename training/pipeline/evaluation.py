"""A candidate judged on a day it has not learned, beside the scores that were served that day; and the gate.

The same impressions, both scores: AUC with a paired bootstrap interval by user, log loss, calibration. A negative kept
with probability pi stands for 1 / pi of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.auc import auc, compared
from streaming.declaration import Declaration
from streaming.example import Batch
from training.learn.metrics import logloss

Floats = npt.NDArray[np.floating]
NEAR_ONE = 1e-7
"""A served probability of 0 or 1 is this far from it in the log loss."""


@dataclass(frozen=True)
class Gate:
    """What a candidate must reach to be promoted; its mean score / rate is at most `calibration`, at least 1 / it."""

    tolerance: float = 0.01
    calibration: float = 1.25
    least_examples: int = 200

    def refusals(self, report: dict[str, Any]) -> list[str]:
        """Each figure that failed, and what is allowed; empty: it may be promoted."""
        found = []
        if report["examples"] < self.least_examples:
            found.append(f"examples is {report['examples']}, allowed is {self.least_examples} or more")
        low, calibration = report["low"], report["candidate"]["calibration"]
        if low is None or low <= -self.tolerance:
            said = "unknown (no positives, or no negatives)" if low is None else f"{low:.4f}"
            found.append(
                f"low, the lower bound of candidate - served AUC, is {said}, allowed is above {-self.tolerance:g}"
            )
        if calibration is None or not 1 / self.calibration <= calibration <= self.calibration:
            allowed = f"{1 / self.calibration:.3g} to {self.calibration:.3g}"
            said = "unknown (no positives)" if calibration is None else f"{calibration:.3f}"
            found.append(f"calibration, the candidate's mean score / rate, is {said}, allowed is {allowed}")
        return found

    def settings(self) -> dict[str, float]:
        return asdict(self)


def evaluate(batch: Batch, logits: Floats, declaration: Declaration, seed: int = 0) -> dict[str, Any]:
    """The report of a candidate from its logits, float[n, tasks], of the same examples.

    `examples` counts the judged task's, among those that were scored when they were shown."""
    judged = declaration.tasks.index(declaration.judged)
    at = _shown(batch, judged)
    labels, weights = batch.labels[at, judged], _weights(batch, at, judged)
    candidate, served = _probability(logits[at, judged]), batch.scores[at, judged].astype(np.float64)
    if len(at):
        difference = compared(labels, candidate, served, batch.user_id[at], seed, weights)._asdict()
    else:
        difference = dict.fromkeys(("difference", "low", "high"), float("nan"))
    clipped = np.clip(served, NEAR_ONE, 1 - NEAR_ONE)
    report = {
        "task": declaration.judged,
        "examples": len(at),
        "unscored": int((batch.weights[:, judged] > 0).sum()) - len(at),
        "candidate": _figures(labels, candidate, logits[at, judged], weights),
        "served": _figures(labels, served, np.log(clipped / (1 - clipped)), weights),
        **{name: difference[name] for name in ("difference", "low", "high")},
        "tasks": {},
    }
    for place, task in enumerate(declaration.tasks):
        rows = _shown(batch, place)
        label, weight = batch.labels[rows, place], _weights(batch, rows, place)
        report["tasks"][task] = {
            "positives": int(label.sum()),
            "candidate": auc(label, logits[rows, place], weight),
            "served": auc(label, batch.scores[rows, place], weight),
        }
    known: dict[str, Any] = _known(report)
    return known


def _shown(batch: Batch, task: int) -> npt.NDArray[np.intp]:
    """Examples whose business the task is, and that something scored when they were shown."""
    return np.flatnonzero((batch.weights[:, task] > 0) & np.isfinite(batch.scores[:, task]))


def _weights(batch: Batch, at: npt.NDArray[np.intp], task: int) -> Floats:
    return np.where(batch.labels[at, task] > 0, 1.0, 1 / batch.pi[at])


def _probability(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _figures(labels: Floats, scores: Floats, logits: Floats, weights: Floats) -> dict[str, float]:
    """AUC, log loss, and the mean score over the rate."""
    positives = float((weights * labels).sum())
    return {
        "auc": auc(labels, scores, weights),
        "loss": logloss(logits, labels, weights),
        "calibration": float((weights * scores).sum()) / positives if positives else float("nan"),
    }


def _known(value: Any) -> Any:
    """NaN as None, all through: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
