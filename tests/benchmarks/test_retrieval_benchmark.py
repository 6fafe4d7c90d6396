"""A trial of Deep Retrieval in small: its paths find what popularity does not, and the control can fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.retrieval import summary
from benchmarks.retrievers import histories
from benchmarks.retrievers.speed import random_paths
from benchmarks.retrievers.trial import Setting, Trial, overlap

SMALL = Setting(
    nodes=10, layers=2, listed=40, wanted=6, cap=12, warm=8, joint=2, rounds=2, part=1, dim=16, rate=0.01, batch=256
)  # fmt: skip


@pytest.fixture(scope="module")
def trial() -> Trial:
    data = histories.generated(0, items=200, clusters=20, users=700, liked=12, judged=200)
    made = Trial(data, SMALL, 0)
    made.learn()
    return made


def test_paths_find_more_of_brute_forces_list_than_as_many_popular_items(trial: Trial) -> None:
    figures = trial.judge(8)
    assert figures["candidates"] <= 70
    assert figures["overlap"] > figures["popularity"] + 0.2, figures
    assert [step["largest"] <= SMALL.cap for step in trial.watch] == [True, True]
    assert trial.sizes.sum() == (trial.paths >= 0).sum()


def test_a_judged_user_is_in_no_pair_and_their_history_is_in_no_list() -> None:
    data = histories.generated(1, items=200, clusters=20, users=120, liked=12, judged=20)
    assert len(data.target) == 100 * (12 - histories.LEAST)
    assert data.seen[:, 0].all() and not (data.seen & data.liked).any()
    assert data.liked.sum(axis=1).tolist() == [6] * 20
    assert all(data.seen[n, row[row > 0]].all() for n, row in enumerate(data.known))


def test_overlap_counts_shared_items() -> None:
    assert overlap([[1, 2, 3, 4], [5, 6, 7, 8]], [[4, 3, 9], [5, 6, 7, 8]]) == pytest.approx(0.75)


def test_a_million_items_lie_at_their_paths() -> None:
    paths, rows = random_paths(np.random.default_rng(0), 50, 60)
    assert len(paths) == len(rows) <= 50 and (rows.reshape(len(rows), -1, 3)[:, 0, 2] > 0).all()


def test_the_summary_names_what_has_goals() -> None:
    figures: dict[str, Any] = {"overlap": 0.9, "popularity": 0.2, "candidates": 240, "used_share": 0.5, "items": 5000}
    made = summary({"generated": {"trials": [figures]}, "speed": {"figures": {"retrieve_1m_p50_ms": 1.0}}})
    assert made == {
        "overlap_generated": 0.9, "popularity_generated": 0.2, "candidates_generated": 240.0,
        "candidates_share_generated": 0.048, "used_paths_share": 0.5, "retrieve_1m_p50_ms": 1.0,
    }  # fmt: skip
