"""Area under the ROC curve: the probability that a positive is scored above a negative, ties counting half."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """AUC of labels 0 or 1; NaN while there are not both.

    `weights` are float[n]: a negative kept with probability pi stands for 1 / pi of them.
    """
    label = np.asarray(labels, np.float64)
    weight = np.ones(len(label)) if weights is None else np.asarray(weights, np.float64)
    values, place = np.unique(np.asarray(scores), return_inverse=True)
    positive = np.bincount(place, weight * label, len(values))
    negative = np.bincount(place, weight * (1 - label), len(values))
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")
