"""Streaming path scores: for each item, the paths that its users' beams find most, with their summed probability.

    path in both lists     eta s + s'
    only in the batch's    eta min + s'     min: the least score of a full list, 0 while the list has room
    only in the old list   eta s

The best S paths of an item stay (Gao et al., arXiv 2007.07203, section 3.3). Without `min` a new path could never
displace an old one. eta is applied once for each batch in which the item had a positive.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Paths = NDArray[np.int64]
Scores = NDArray[np.float32]


class PathScores(NamedTuple):
    """Lists of S paths, int64[v, S] with -1 for none, their scores float32[v, S], and the items' positives float32[v].

    A list is in falling order of its scores. Positives fade by eta as scores do: their quotient is a mean probability.
    """

    paths: Paths
    scores: Scores
    positives: Scores

    @classmethod
    def empty(cls, items: int, size: int) -> PathScores:
        lists = np.full((items, size), -1, np.int64), np.zeros((items, size), np.float32)
        return cls(*lists, np.zeros(items, np.float32))


def merged(old: PathScores, item: NDArray[np.intp], paths: Paths, probability: Scores, eta: float) -> PathScores:
    """Returns the lists after a batch of positives: their items' rows in the lists int[n], and their beams [n, b].

    Each row of `old` must have a positive in the batch.
    """
    count, size = old.paths.shape
    span = int(max(old.paths.max(initial=0), paths.max(initial=0))) + 1
    keys, of_key = np.unique((item[:, None] * span + paths).ravel(), return_inverse=True)
    new = np.bincount(of_key, probability.ravel(), len(keys))
    filled = old.paths >= 0
    old_keys = (np.arange(count)[:, None] * span + old.paths)[filled]
    least = np.where(filled.all(axis=1), old.scores.min(axis=1, initial=np.inf), 0.0)
    known = np.isin(keys, old_keys)
    fresh = eta * least[keys[~known] // span] + new[~known]
    kept = eta * old.scores[filled]
    at = np.minimum(np.searchsorted(keys, old_keys), max(len(keys) - 1, 0))
    kept += np.where(keys[at] == old_keys, new[at], 0.0)
    positives = eta * old.positives + np.bincount(item, minlength=count)
    all_keys, all_scores = np.concatenate([old_keys, keys[~known]]), np.concatenate([kept, fresh])
    return PathScores(*_best(all_keys // span, all_keys % span, all_scores, count, size), positives.astype(np.float32))


def _best(item: Paths, path: Paths, score: Scores, count: int, size: int) -> tuple[Paths, Scores]:
    """Returns the `size` best paths of each item and their scores; equal scores in the order of the paths."""
    order = np.lexsort((path, -score, item))
    item, path, score = item[order], path[order], score[order]
    rank = np.arange(len(item)) - np.searchsorted(item, item)
    keep = rank < size
    paths, scores = np.full((count, size), -1, np.int64), np.zeros((count, size), np.float32)
    paths[item[keep], rank[keep]], scores[item[keep], rank[keep]] = path[keep], score[keep]
    return paths, scores
