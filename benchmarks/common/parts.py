"""A part of the quality benchmark: its figures, with the spread over seeds, and its share of the summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """`rows` go into quality.json and the page, one a figure; `summary` is name -> the figure that a goal is about."""

    rows: list[dict[str, Any]]
    summary: dict[str, float]


T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262}
"""Degrees of freedom -> the 97.5 % point of Student's t."""


def low_end(differences: Any) -> float:
    """The lower end of the 95 % interval of the mean of paired differences, one a seed."""
    n = len(differences)
    half = T95.get(n - 1, 2.0) * np.std(differences, ddof=1) / np.sqrt(n) if n > 1 else 0.0
    return float(np.mean(differences) - half)


def row(label: str, values: Sequence[float], goal: str = "", digits: int = 4) -> dict[str, Any]:
    """One figure: its value for each seed, their mean and standard deviation. `goal` is text, such as `> 0`."""
    mean = round(float(np.mean(values)), digits)
    deviation = round(float(np.std(values, ddof=1)), digits) if len(values) > 1 else None
    rounded = [round(float(value), digits) for value in values]
    return {"label": label, "mean": mean, "sd": deviation, "seeds": rounded, "goal": goal}
