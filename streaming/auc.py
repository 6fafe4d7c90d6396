"""Area under the ROC curve: the probability that a positive is scored above a negative, ties counting half."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """AUC by mid-ranks (the Mann-Whitney statistic); NaN while there are not both labels."""
    positive = np.asarray(labels) > 0.5
    _, place, count = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    p, n = int(positive.sum()), int((~positive).sum())
    return float((rank[positive].sum() - p * (p + 1) / 2) / (p * n)) if p and n else float("nan")
