"""The data of the retrieval trials: for each user, the items that they liked, in time's order.

`generated` draws users whose three interests are known: clusters of items, in which some items are more popular.
`movielens` reads ml-1m, ratings of 4 and more. Users are disjoint: a trial learns from some and is judged by others,
whose first half of items is known and whose list is made without it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

RECENT = 32
"""The items of a history that a user's vector is computed of."""
LEAST = 6
"""The items of a history before the first pair of a user."""


@dataclass(frozen=True)
class Histories:
    """Items are 1 .. items; 0 is no item. Histories are int32[n, RECENT], the newest last.

    `history` and `target` are the pairs to learn. `known` are the judged users' histories. Of each judged user, `seen`
    is what the list leaves out, and `liked` is what they liked after their history: bool[users, items + 1].
    """

    items: int
    history: NDArray[np.int32]
    target: NDArray[np.int32]
    known: NDArray[np.int32]
    seen: NDArray[np.bool_]
    liked: NDArray[np.bool_]

    @property
    def positives(self) -> NDArray[np.int64]:
        """Item -> its pairs, int64[items + 1]."""
        return np.bincount(self.target, minlength=self.items + 1)


def of_users(users: list[NDArray[np.int32]], items: int, judged: int, seed: int) -> Histories:
    order = np.random.default_rng(seed).permutation(len(users))
    test, train = order[:judged], order[judged:]
    pairs = [(users[u], t) for u in train for t in range(LEAST, len(users[u]))]
    known = [users[u][: len(users[u]) // 2] for u in test]
    seen, later = np.zeros((judged, items + 1), bool), np.zeros((judged, items + 1), bool)
    seen[:, 0] = True
    for n, u in enumerate(test):
        seen[n, known[n]] = True
        later[n, users[u][len(known[n]) :]] = True
    history = np.stack([recent(liked[:t]) for liked, t in pairs])
    target = np.array([liked[t] for liked, t in pairs])
    return Histories(items, history, target, np.stack([recent(k) for k in known]), seen, later & ~seen)


def recent(liked: NDArray[np.int32]) -> NDArray[np.int32]:
    last = liked[-RECENT:]
    return np.concatenate([np.zeros(RECENT - len(last), np.int32), last])


def generated(
    seed: int, *, items: int = 5000, clusters: int = 100, users: int = 16_000, liked: int = 24, judged: int = 1000
) -> Histories:
    """Each user likes `liked` items of 3 of the clusters. An item's weight in its cluster is lognormal."""
    random = np.random.default_rng(seed)
    cluster = random.permutation(items) % clusters
    of_cluster = [np.flatnonzero(cluster == c) for c in range(clusters)]
    weight = random.lognormal(0, 1, items)
    chance = [weight[these] / weight[these].sum() for these in of_cluster]
    histories = []
    for _ in range(users):
        mine = random.choice(clusters, 3, replace=False)
        parts = np.bincount(random.integers(0, 3, liked), minlength=3)
        drawn = [
            random.choice(of_cluster[c], min(n, len(of_cluster[c])), replace=False, p=chance[c])
            for c, n in zip(mine, parts, strict=True)
        ]
        histories.append(random.permutation(np.concatenate(drawn)).astype(np.int32) + 1)
    return of_users(histories, items, judged, seed)


def movielens(seed: int, folder: Path | None = None) -> Histories:
    path = (folder or Path(os.environ.get("MINUTEHAND_DATA", "data"))) / "ml-1m" / "ratings.parquet"
    ratings = pq.read_table(path).sort_by([("user_id", "ascending"), ("ts", "ascending")])
    liked = ratings["rating"].to_numpy() >= 4
    user, movie = ratings["user_id"].to_numpy()[liked], ratings["movie_id"].to_numpy()[liked]
    movies, item = np.unique(movie, return_inverse=True)
    begin = np.flatnonzero(np.diff(user, prepend=-1))
    each = [items.astype(np.int32) + 1 for items in np.split(item, begin[1:])]
    return of_users([items for items in each if len(items) >= 10], len(movies), judged=1000, seed=seed)
