"""The figures of value tasks, which learn the expected value of an action, such as minutes of watching.

With T >= 0 the value of an impression (0 where nothing happened), w its weight (1 / pi for a kept negative, else 1) and
p the score as served, whose expectation is E = p / (1 - p) (training/models/losses.py):

    mean           sum w T / sum w
    calibration    sum w E / sum w T: mean expected value / mean value
    loss           -sum w (T log p + log(1 - p)) / sum w: the loss that the task learns, over all impressions
    auc            the share of sum w T_i w_j over the pairs of an impression i with a value and an impression j without
                   one in which i is scored higher; ties count half

The loss is weighted logistic regression (Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys
2016, section 4.2). The AUC is 1 less that paper's weighted loss: the value that is mispredicted because an impression
without one is scored higher (section 4.3). Here the pairs are those of all impressions, and not of one user's page.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.auc import auc

LEAST = 1e-9
"""Scores count as this far from 0 and 1 at least, so that no expectation is 0 or infinite."""


def expected(scores: Any) -> NDArray[np.float64]:
    """The expected value E = p / (1 - p) of scores as served."""
    p = np.clip(np.asarray(scores, np.float64), LEAST, 1 - LEAST)
    return p / (1 - p)


def figures(labels: Any, values: Any, scores: Any, weights: Any) -> dict[str, float]:
    """Returns `mean`, `calibration`, `loss` and `auc` of scores as served; NaN where one is undefined.

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
        "auc": auc(happened, scores, weight * np.where(happened, value, 1.0)),
    }
