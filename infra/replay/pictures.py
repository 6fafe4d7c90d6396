"""The report's pictures: freshness over time, and the served against the frozen model's AUC over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from infra.replay.report import freshness, weighted_percentiles

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


def auc_picture(points: list[dict[str, Any]], task: str, path: Path) -> None:
    """Both AUCs in each slice of event time, and below the difference so far with its 95 % interval."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    slices = [p for p in points if p["slice"]["served"] is not None]
    days = [p["hours"] / 24 for p in slices]
    for name, style in (("served", "o-"), ("frozen", "s--")):
        upper.plot(days, [p["slice"][name] for p in slices], style, markersize=4, label=name)
    upper.set(ylabel="AUC of the slice", title=f"AUC of {task}, scores as served")
    upper.legend()
    some = [p for p in points if p["difference"] is not None]
    days = [p["hours"] / 24 for p in some]
    lower.fill_between(days, [p["low"] for p in some], [p["high"] for p in some], alpha=0.25, label="95 % interval")
    lower.plot(days, [p["difference"] for p in some], "o-", markersize=4, label="served - frozen, so far")
    lower.axhline(0, color="grey", linewidth=0.8)
    lower.set(xlabel="days of event time", ylabel="difference of AUC")
    lower.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
