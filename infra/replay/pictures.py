"""The report's pictures: freshness over time, and the served against the frozen model's AUC over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sklearn.metrics import roc_auc_score

from infra.replay.report import Array, freshness, weighted_percentiles

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen before it is loaded


def freshness_picture(confirmed: list[dict[str, Any]], sync_every_s: float, path: Path) -> None:
    """One point a delta: median and 99th percentile of the age of its actions when the replica confirmed it."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    begin = confirmed[0]["confirmed_ms"] if confirmed else 0
    lines = [c for c in confirmed if c["written_ms"]["positive"]]
    at = [(c["confirmed_ms"] - begin) / 1000 for c in lines]
    ages = [weighted_percentiles(freshness([c], "positive"), (50, 99)) for c in lines]
    for name, style in (("p50", "o-"), ("p99", "s--")):
        axes.plot(at, [age[name] or 0.0 for age in ages], style, markersize=3, label=name)
    axes.axhline(sync_every_s, color="grey", linewidth=0.8, label=f"sync_every {sync_every_s:g} s")
    axes.set(
        xlabel="seconds since the first delta", ylabel="seconds", title="Freshness: from a click to the served model"
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def auc_picture(wall_ms: Array, labels: Array, served: Array, frozen: Array, task: str, path: Path) -> None:
    """AUC in twelve slices of equal numbers of impressions, at the wall time of each slice's middle."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    slices = [s for s in np.array_split(np.argsort(wall_ms, kind="stable"), 12) if 0 < labels[s].sum() < len(s)]
    at = [(float(np.median(wall_ms[s])) - float(wall_ms.min())) / 1000 for s in slices]
    for name, scores, style in (("served", served, "o-"), ("frozen", frozen, "s--")):
        axes.plot(at, [roc_auc_score(labels[s], scores[s]) for s in slices], style, markersize=4, label=name)
    axes.set(xlabel="seconds of replay", ylabel="AUC", title=f"AUC of {task}, scores as served")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
