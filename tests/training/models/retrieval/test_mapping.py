"""The mapping step against loops: the greedy choice by the formula, and the objective from its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from training.models.retrieval.mapping import Penalty, mapping_step, objective
from training.models.retrieval.scores import PathScores

PATHS, J = 30, 3


def world(items: int = 40, seed: int = 0) -> tuple[PathScores, NDArray[np.int64], NDArray[np.int64]]:
    """Items that all like the first paths best, at random paths."""
    random = np.random.default_rng(seed)
    paths = np.stack([random.permutation(PATHS)[:8] for _ in range(items)])
    scores = -np.sort(-random.exponential(1 / (1 + paths)), axis=1)
    present = np.stack([random.permutation(PATHS)[:J] for _ in range(items)])
    positives = random.integers(1, 50, items).astype(np.float32)
    lists = PathScores(paths, scores.astype(np.float32), positives)
    return lists, present, np.bincount(present.ravel(), minlength=PATHS)


def counted(lists: PathScores, paths: NDArray[np.int64], alpha: float) -> float:
    """The objective, from its definition."""
    total = 0.0
    for v, chosen in enumerate(paths.tolist()):
        score = dict(zip(lists.paths[v].tolist(), lists.scores[v].tolist(), strict=True))
        total += float(lists.positives[v]) * math.log(sum(max(score.get(c, 0.0), 1e-12) for c in chosen))
    sizes = [sum(c == path for chosen in paths.tolist() for c in chosen) for path in range(PATHS)]
    return total - alpha * sum(n**4 / 4 for n in sizes)


def test_an_item_takes_the_path_of_largest_gain_each_time() -> None:
    lists, _, _ = world(1)
    n, alpha, sizes = float(lists.positives[0]), 0.02, np.arange(PATHS) % 7
    taken: list[int] = []
    total = 0.0
    for _ in range(J):
        gains = {}
        for c, s in zip(lists.paths[0].tolist(), lists.scores[0].tolist(), strict=True):
            if c not in taken:
                more = math.log(total + s) - (math.log(total) if taken else 0.0)
                gains[c] = n * more - alpha * ((sizes[c] + 1) ** 4 - sizes[c] ** 4) / 4
        taken.append(max(gains, key=lambda c: gains[c]))
        total += float(lists.scores[0][lists.paths[0].tolist().index(taken[-1])])
    begun = sizes.copy()
    step = mapping_step(lists, np.full((1, J), -1), sizes, Penalty(alpha, 100))
    assert step.paths[0].tolist() == taken
    assert (sizes - begun).tolist() == [int(c in taken) for c in range(PATHS)]


def test_no_sweep_lowers_the_objective() -> None:
    lists, paths, sizes = world()
    penalty, last = Penalty(0.01, 100), -math.inf
    for _ in range(5):
        before = counted(lists, paths, 0.01)
        assert objective(lists, paths, sizes, penalty) == pytest.approx(before, rel=1e-9)
        assert before >= last
        last, paths = before, mapping_step(lists, paths, sizes, penalty, sweeps=1).paths
        assert sizes.tolist() == np.bincount(paths.ravel(), minlength=PATHS).tolist()
    assert last > counted(lists, world()[1], 0.01)


def test_the_cap_holds_and_the_penalty_spreads() -> None:
    lists, paths, sizes = world()
    mapping_step(lists, paths, sizes, Penalty(0.0, 100))
    largest = int(sizes.max())
    for penalty in (Penalty(0.0, 6), Penalty(0.1, 100)):
        lists, paths, sizes = world()
        mapping_step(lists, paths, sizes, penalty)
        assert sizes.max() < largest
    assert world()[2].max() > 6  # the cap's world began above it
    lists, paths, sizes = world()
    step = mapping_step(lists, paths, sizes, Penalty(0.0, 6))
    assert sizes.max() <= 6 and sizes.tolist() == np.bincount(step.paths[step.paths >= 0], minlength=PATHS).tolist()


def test_a_margin_and_a_limit_hold_items_at_their_paths() -> None:
    lists, paths, sizes = world()
    assert mapping_step(lists, paths, sizes.copy(), Penalty(0.01, 100), margin=1e9).moved == 0
    step = mapping_step(lists, paths, sizes.copy(), Penalty(0.01, 100), most=5)
    assert step.moved == 5
    assert (step.paths[20:] == paths[20:]).all()


def test_an_item_without_candidates_stays_without_paths() -> None:
    step = mapping_step(PathScores.empty(2, 4), np.full((2, J), -1), np.zeros(PATHS, np.int64), Penalty(0.1, 3))
    assert (step.paths == -1).all() and step.moved == 0


def test_alpha_of_a_wanted_size_prices_one_more_item_at_a_tenth_of_its_positives() -> None:
    penalty = Penalty.of_size(5, positives=80, cap=20)
    assert penalty.alpha * 5**3 == pytest.approx(8)
    assert penalty.marginal(np.array([2, 20])).tolist() == [pytest.approx(penalty.alpha * (81 - 16) / 4), math.inf]
