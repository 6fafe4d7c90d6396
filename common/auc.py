"""Area under the ROC curve: the probability that a positive is scored above a negative, ties counting half."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 300


class Ranks:
    """Scores put in order once, for AUCs of the same scores under many weights."""

    def __init__(self, scores: ArrayLike) -> None:
        values, self._place = np.unique(np.asarray(scores), return_inverse=True)
        self._count = len(values)

    def auc(self, labels: ArrayLike, weights: ArrayLike) -> float:
        """AUC of labels 0 or 1, float[n] weights; NaN while there are not both labels."""
        label, weight = np.asarray(labels, np.float64), np.asarray(weights, np.float64)
        positive = np.bincount(self._place, weight * label, self._count)
        negative = np.bincount(self._place, weight * (1 - label), self._count)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """AUC of labels 0 or 1; NaN while there are not both.

    `weights` are float[n]: a negative kept with probability pi stands for 1 / pi of them.
    """
    return Ranks(scores).auc(labels, np.ones(np.size(labels)) if weights is None else weights)


class Difference(NamedTuple):
    """Two AUCs, first - second, and the 95 % interval of that; NaN where it cannot be said."""

    first: float
    second: float
    difference: float
    low: float
    high: float


def compared(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    users: NDArray[np.int64],
    seed: int,
    weights: ArrayLike | None = None,
) -> Difference:
    """Two scores of the same examples: a paired bootstrap, resampled by user."""
    label = np.asarray(labels, np.float64)
    weight = np.ones(len(label)) if weights is None else np.asarray(weights, np.float64)
    both = [Ranks(first), Ranks(second)]
    one, other = (ranks.auc(label, weight) for ranks in both)
    if np.isnan(one):
        return Difference(*[float("nan")] * 5)
    rng = np.random.default_rng(seed)
    _, user = np.unique(users, return_inverse=True)
    count = int(user.max()) + 1
    differences = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count)[user] * weight
        differences.append(both[0].auc(label, drawn) - both[1].auc(label, drawn))
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return Difference(one, other, one - other, float(low), float(high))
