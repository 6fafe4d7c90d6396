"""Streaming path scores: the rules by hand, and random batches against a loop over dictionaries."""

from __future__ import annotations

import numpy as np

from training.models.retrieval.scores import PathScores, merged


def lists(paths: list[list[int]], scores: list[list[float]], positives: list[float]) -> PathScores:
    return PathScores(np.array(paths), np.array(scores, np.float32), np.array(positives, np.float32))


def test_the_rules_by_hand() -> None:
    old = lists([[7, 3, 9]], [[4.0, 2.0, 1.0]], [10.0])
    new = merged(old, np.array([0, 0]), np.array([[3, 5], [3, 6]]), np.array([[0.5, 1.8], [0.25, 0.1]]), eta=0.5)
    # path 3: 0.5 * 2 + 0.75; path 5: 0.5 * 1 + 1.8; path 7: 0.5 * 4; paths 6 (0.6) and 9 (0.5) fall off
    assert new.paths.tolist() == [[5, 7, 3]]
    np.testing.assert_allclose(new.scores, [[2.3, 2.0, 1.75]], rtol=1e-6)
    assert new.positives.tolist() == [7.0]


def test_a_list_with_room_gives_a_new_path_no_bonus() -> None:
    new = merged(lists([[7, -1]], [[4.0, 0.0]], [1.0]), np.array([0]), np.array([[5]]), np.array([[0.5]]), eta=1)
    assert new.paths.tolist() == [[7, 5]]
    assert new.scores.tolist() == [[4.0, 0.5]]


def test_random_batches_equal_a_loop() -> None:
    random, size, eta = np.random.default_rng(0), 4, 0.9
    state = PathScores.empty(3, size)
    oracle: list[dict[int, float]] = [{} for _ in range(3)]
    for _ in range(20):
        item = np.concatenate([np.arange(3), random.integers(0, 3, 2)])
        paths = np.stack([random.choice(12, 3, replace=False) for _ in item])
        probability = random.random(paths.shape)
        state = merged(state, item, paths, probability, eta)
        for v in range(3):
            least = min(oracle[v].values()) if len(oracle[v]) == size else 0.0
            batch: dict[int, float] = {}
            for i in np.flatnonzero(item == v):
                for c, p in zip(paths[i].tolist(), probability[i], strict=True):
                    batch[c] = batch.get(c, 0.0) + p
            every = {c: eta * s for c, s in oracle[v].items()}
            for c, s in batch.items():
                every[c] = every.get(c, eta * least) + s
            oracle[v] = dict(sorted(every.items(), key=lambda pair: -pair[1])[:size])
            assert state.paths[v][state.paths[v] >= 0].tolist() == list(oracle[v])
            np.testing.assert_allclose(state.scores[v][: len(oracle[v])], list(oracle[v].values()), rtol=1e-5)
