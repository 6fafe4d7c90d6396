"""Combines the scores of an item's tasks into the one number that ranks it.

With e_t the declared exponent of task t and s_t its score, the rank score is the product of s_t^e_t: the weighted
multiplication of Zhao et al., Recommending What Video to Watch Next, RecSys 2019, section 4.2. A negative exponent
ranks lower what its task expects. A product does not depend on the units of the scores; so each task must be
calibrated, not scaled. The score of a value task is p = E / (1 + E) of the expected value E, by
training/models/losses.py, and counts as E = p / (1 - p).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.value import LEAST, expected
from streaming.declaration import Declaration


def expectation(declaration: Declaration, task: str, scores: Any) -> NDArray[np.float64]:
    """The expectation of a task of its scores as served: the probability, or for a value task the value."""
    if task in declaration.values:
        return expected(scores)
    return np.clip(np.asarray(scores, np.float64), LEAST, 1)  # no factor is 0 or infinite


def rank_scores(declaration: Declaration, scores: Mapping[str, Any]) -> NDArray[np.float64]:
    """Computes the rank score of each item from task -> scores [n] as served. Without `rank` the judged task ranks."""
    if not declaration.exponents:
        return np.asarray(scores[declaration.judged], np.float64)
    total = np.zeros(len(scores[declaration.judged]))
    for task, exponent in declaration.exponents.items():
        total += exponent * np.log(expectation(declaration, task, scores[task]))
    return np.exp(total)
