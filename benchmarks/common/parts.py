"""A part of the quality benchmark: its figures, with the spread over seeds, and its share of the summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """`rows` go into quality.json and the page, one a figure; `summary` is name -> the figure that a goal is about."""

    rows: list[dict[str, Any]]
    summary: dict[str, float]


def row(label: str, values: Sequence[float], goal: str = "", digits: int = 4) -> dict[str, Any]:
    """One figure: its value for each seed, their mean and standard deviation. `goal` is text, such as `> 0`."""
    mean = round(float(np.mean(values)), digits)
    deviation = round(float(np.std(values, ddof=1)), digits) if len(values) > 1 else None
    rounded = [round(float(value), digits) for value in values]
    return {"label": label, "mean": mean, "sd": deviation, "seeds": rounded, "goal": goal}
