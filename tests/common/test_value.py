"""The figures of value tasks against loops over all impressions and pairs."""

from __future__ import annotations

import numpy as np
import pytest

from common.value import expected, figures


def test_the_figures_of_a_value_task_are_the_formulas() -> None:
    rng = np.random.default_rng(4)
    n = 50
    labels, values = rng.integers(0, 2, n), rng.integers(0, 9, n) / 2  # with ties
    scores = rng.integers(1, 9, n) / 10  # with ties
    weights = np.where(labels > 0, 1.0, rng.integers(1, 5, n))
    loss = predicted = watched = won = pairs = 0.0
    for i in range(n):
        t = values[i] if labels[i] else 0.0
        loss -= weights[i] * (t * np.log(scores[i]) + np.log(1 - scores[i]))
        predicted += weights[i] * scores[i] / (1 - scores[i])
        watched += weights[i] * t
        for j in range(n):
            if t > (values[j] if labels[j] else 0.0):
                pairs += weights[i] * weights[j]
                won += weights[i] * weights[j] * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
    found = figures(labels, np.where(labels > 0, values, np.nan), scores, weights)
    assert found == pytest.approx(
        {
            "mean": watched / weights.sum(),
            "calibration": predicted / watched,
            "loss": loss / weights.sum(),
            "concordance": won / pairs,
        }
    )


def test_a_score_that_knows_the_expectation_is_calibrated_and_has_the_least_loss() -> None:
    rng = np.random.default_rng(5)
    mean = rng.choice([0.2, 1.0, 4.0], 60_000)
    labels, ones = rng.random(len(mean)) < 0.5, np.ones(len(mean))
    values = rng.exponential(2 * mean)
    by_factor = {k: figures(labels, values, k * mean / (1 + k * mean), ones) for k in (0.5, 1.0, 2.0)}
    assert [by_factor[k]["calibration"] for k in by_factor] == pytest.approx([0.5, 1, 2], rel=0.03)
    assert by_factor[1.0]["loss"] < min(by_factor[0.5]["loss"], by_factor[2.0]["loss"])
    assert by_factor[0.5]["concordance"] == by_factor[2.0]["concordance"] > 0.55  # the order alone


def test_without_a_value_or_an_impression_a_figure_is_undefined() -> None:
    nothing = figures([0, 0], [np.nan] * 2, [0.5, 0.5], [1, 1])
    assert nothing["mean"] == 0 and np.isnan([nothing["calibration"], nothing["concordance"]]).all()
    assert np.isnan(list(figures([], [], [], []).values())).all()
    assert np.isfinite(expected([0.0, 1.0])).all()
