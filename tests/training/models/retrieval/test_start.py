"""The first paths: items that lie together share nodes, no path is too full, no item has a path twice."""

from __future__ import annotations

import numpy as np

from training.models.retrieval.start import first_paths


def test_items_of_a_cluster_share_their_first_node() -> None:
    random = np.random.default_rng(0)
    cluster = np.repeat(np.arange(8), 20)
    vectors = (random.normal(size=(8, 6))[cluster] * 10 + random.normal(size=(160, 6)) * 0.1).astype(np.float32)
    paths = first_paths(vectors, nodes=8, layers=2, paths=2, cap=10)
    first = paths[:, 0] // 8
    mixed = [len(set(first[cluster == c].tolist())) for c in range(8)]
    assert np.mean(mixed) <= 1.5, mixed


def test_no_path_is_too_full_and_no_item_has_one_twice() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    paths = first_paths(vectors, nodes=4, layers=3, paths=3, cap=4)
    known = paths[paths >= 0]
    assert np.bincount(known).max() <= 4
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in paths)
    assert (paths[:, 0] >= 0).mean() > 0.9


def test_a_path_that_is_full_is_left_to_the_items_that_come_first() -> None:
    vectors = np.zeros((6, 2), np.float32)
    paths = first_paths(vectors, nodes=2, layers=1, paths=1, cap=2)
    assert (paths[:2] >= 0).all() and (paths[4:] == -1).all()
