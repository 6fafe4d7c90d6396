"""The rank score: a product of the tasks' scores by hand."""

from __future__ import annotations

import numpy as np
import pytest

from serving.ranking import rank_scores
from streaming.declaration import Declaration, Feature

PLAIN = Declaration("films", (Feature("film", "id"),), ("click", "watch", "hate"), "click", 60_000)


def declared(**rank: float) -> Declaration:
    return Declaration("films", PLAIN.features, PLAIN.tasks, "click", 60_000, values=("watch",), rank=rank)


SCORES = {"click": [0.5, 0.2], "watch": [0.75, 0.9], "hate": [0.1, 0.001]}


def test_the_judged_task_ranks_if_nothing_is_declared() -> None:
    np.testing.assert_array_equal(rank_scores(PLAIN, SCORES), [0.5, 0.2])


def test_each_score_has_its_exponent_and_a_value_counts_as_its_expectation() -> None:
    assert rank_scores(declared(click=1, watch=0.5), SCORES) == pytest.approx([0.5 * 3**0.5, 0.2 * 3])
    assert rank_scores(declared(click=1, hate=-1), SCORES) == pytest.approx([5, 200])


def test_no_score_makes_a_rank_infinite() -> None:
    edges = {"click": [0.0, 1.0], "watch": [0.0, 1.0], "hate": [0.0, 1.0]}
    assert np.isfinite(rank_scores(declared(click=1, watch=2, hate=-2), edges)).all()
