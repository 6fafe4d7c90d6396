"""The first paths of items: residual k-means of their vectors.

If all items began at random paths, p(path | user) would not depend on the user at first. Then every beam finds the same
paths, every item chooses among these, and the items pile up. So the first paths have structure: layer d clusters what
the layers before leave of an item's vector. Items that the same users like begin at the same or at near paths.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.models.retrieval.scores import Paths

Vectors = NDArray[np.float32]


def first_paths(
    vectors: Vectors, *, nodes: int, layers: int, paths: int, cap: int, seed: int = 0, rounds: int = 20
) -> Paths:
    """Returns int64[v, paths]: the nearest paths of each item's vector float32[v, dim], the best first.

    A path takes `cap` items at most, those that come first: order the items by what they are worth. An item whose near
    paths are all full gets fewer, -1 for each that is missing.
    """
    random = np.random.default_rng(seed)
    left, books = vectors.astype(np.float32), []
    for _ in range(layers):
        book = k_means(left, nodes, random, rounds)
        left = left - book[_distances(left, book).argmin(axis=1)]
        books.append(book)
    return _placed(_nearest(vectors.astype(np.float32), books, 4 * paths), nodes**layers, paths, cap)


def k_means(points: Vectors, count: int, random: np.random.Generator, rounds: int) -> Vectors:
    """Returns `count` centres float32[count, dim] by Lloyd's rounds; a centre without points takes the worst point."""
    centres = points[random.choice(len(points), count, replace=len(points) < count)].copy()
    for _ in range(rounds):
        distance = _distances(points, centres)
        nearest = distance.argmin(axis=1)
        number = np.bincount(nearest, minlength=count)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, points)
        centres = (sums / np.maximum(number, 1)[:, None]).astype(np.float32)
        if len(empty := np.flatnonzero(number == 0)):
            worst = np.argsort(-distance[np.arange(len(points)), nearest])[: len(empty)]
            centres[empty[: len(worst)]] = points[worst]
    return centres


def _nearest(vectors: Vectors, books: list[Vectors], width: int) -> Paths:
    """Returns the `width` paths whose sums of centres are nearest, by a beam over the layers: int64[v, width]."""
    left, paths = vectors[:, None], np.zeros((len(vectors), 1), np.int64)
    for book in books:
        distance = np.stack([_distances(left[:, b], book) for b in range(left.shape[1])], axis=1)
        flat = distance.reshape(len(vectors), -1)
        best = np.argsort(flat, axis=1, kind="stable")[:, :width]
        parent, node = best // len(book), best % len(book)
        paths = np.take_along_axis(paths, parent, axis=1) * len(book) + node
        left = np.take_along_axis(left, parent[:, :, None], axis=1) - book[node]
    return paths


def _placed(nearest: Paths, all_paths: int, paths: int, cap: int) -> Paths:
    """Returns the first `paths` of each item's nearest ones that have room, int64[v, paths]."""
    sizes, placed = np.zeros(all_paths, np.int64), np.full((len(nearest), paths), -1, np.int64)
    for v, near in enumerate(nearest):
        free = near[sizes[near] < cap][:paths]
        placed[v, : len(free)] = free
        sizes[free] += 1
    return placed


def _distances(points: Vectors, centres: Vectors) -> Vectors:
    """Returns the squared distances float32[n, centres]."""
    distances: Vectors = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * points @ centres.T
    return distances
