"""The figures of value tasks, which learn the expected value of an action, such as minutes of watching.

With T >= 0 the value of an impression (0 where nothing happened), w its weight (1 / pi for a kept negative, else 1) and
p the score as served, whose expectation is E = p / (1 - p) (training/models/losses.py):

    mean           sum w T / sum w
    calibration    sum w E / sum w T: mean expected value / mean value
    loss           -sum w (T log p + log(1 - p)) / sum w: the loss that the task learns, over all impressions
    concordance    the share of sum w_i w_j over the pairs of impressions with T_i > T_j in which i is scored higher; a
                   tie of the scores counts half

The loss is weighted logistic regression (Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys
2016, section 4.2). The concordance is the XAUC of Zhan et al., Deconfounding Duration Bias in Watch-time Prediction for
Video Recommendation, KDD 2022, over all pairs instead of drawn ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 1e-9
"""Scores count as this far from 0 and 1 at least, so that no expectation is 0 or infinite."""


def expected(scores: Any) -> NDArray[np.float64]:
    """The expected value E = p / (1 - p) of scores as served."""
    p = np.clip(np.asarray(scores, np.float64), LEAST, 1 - LEAST)
    return p / (1 - p)


def figures(labels: Any, values: Any, scores: Any, weights: Any) -> dict[str, float]:
    """Returns `mean`, `calibration`, `loss` and `concordance` of scores as served; NaN where one is undefined.

    All are float[n]. Only values where the label is 1 count; the others may be NaN.
    """
    happened, weight = np.asarray(labels) > 0, np.asarray(weights, np.float64)
    value = np.where(happened, np.nan_to_num(np.asarray(values, np.float64)), 0.0)
    odds, total, seen = expected(scores), float((weight * value).sum()), float(weight.sum())
    each = np.log1p(odds) + value * np.log1p(1 / odds)
    return {
        "mean": total / seen if seen else float("nan"),
        "calibration": float((weight * odds).sum()) / total if total else float("nan"),
        "loss": float((weight * each).sum()) / seen if seen else float("nan"),
        "concordance": concordance(value, scores, weight),
    }


def concordance(values: Any, scores: Any, weights: Any) -> float:
    """The share of the weighted pairs with different values that the scores put in the same order; NaN without one."""
    _, value = np.unique(values, return_inverse=True)
    _, score = np.unique(scores, return_inverse=True)
    order = np.lexsort((-score, value))  # of equal values the higher score comes first: it is above none of them
    value, score, weight = value[order], score[order], np.asarray(weights, np.float64)[order]
    of_value = np.bincount(value, weight) if len(value) else np.zeros(1)
    pairs = (weight.sum() ** 2 - (of_value**2).sum()) / 2
    if not pairs > 0:
        return float("nan")
    below = _below(score, weight)
    tied = np.bincount(score, weight)
    same = np.unique(np.stack([value, score], 1), axis=0, return_inverse=True)[1].reshape(-1)
    ties = ((tied**2).sum() - (np.bincount(same, weight) ** 2).sum()) / 2
    return float((below + ties / 2) / pairs)


def _below(score: NDArray[np.int64], weight: NDArray[np.float64]) -> float:
    """The sum of w_i w_j over the places i < j with score_i < score_j.

    A pair is counted at the highest bit in which its scores differ. There both are in one group, and the places of a
    group stay in order.
    """
    total = 0.0
    for bit in reversed(range(int(score.max(initial=0)).bit_length())):
        order = np.argsort(score >> bit + 1, kind="stable")
        group, upper, w = (score >> bit + 1)[order], score[order] >> bit & 1, weight[order]
        lower = np.cumsum(w * (1 - upper))
        begins = np.r_[0.0, lower][np.searchsorted(group, group)]
        total += float((w * upper * (lower - begins)).sum())
    return total
