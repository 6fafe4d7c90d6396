"""Measures what the table's rows of their own are worth: DeepFM with one row an id, and with ids that collide by hash.

The Monolith paper (Liu et al., 2022, arXiv 2209.07663, section 3.1) hashes the ids of MovieLens 25M. Its Table 1 comes
out exactly by MD5 of an id's place, as decimal text, modulo 1,000,000. No data are needed for it.

Its Figure 7 is repeated on MovieLens 1M, with buckets in the same proportion to the ids, so that as large a share of
them collides. A rating of 3.5 stars or more is a positive. Four fifths of the ratings, drawn at random, are learned in
10 epochs; the figure is the AUC of the others after each epoch. Ids of one bucket share the row of the first of them,
so both models begin with the same numbers. The hash has the seed as its salt; seed 0 has none, as in the paper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.movielens import Ratings, ratings
from benchmarks.common.parts import Part, row
from common.auc import auc
from streaming.declaration import Declaration, Feature
from streaming.example import Batch
from tests.support.batches import batch_of
from training.learn.learner import Learner, Settings
from training.models.model import load

DECLARATION = Declaration("movielens", (Feature("user", "id"), Feature("movie", "id")), ("liked",), "liked", 60_000)
MODEL = "deepfm?dim=8&hidden=32"
EPOCHS, BATCH = 10, 8192
BUCKETS = 1_000_000
USERS, MOVIES = 162_541, 59_047
"""Those of MovieLens 25M, as the paper counts them."""


def bucket_of(ids: int, buckets: int, salt: str = "") -> NDArray[np.int64]:
    """The bucket of each of the ids 0 to `ids` - 1."""
    digests = (hashlib.md5(f"{salt}{place}".encode(), usedforsecurity=False) for place in range(ids))
    return np.array([int(digest.hexdigest(), 16) % buckets for digest in digests])


def used(ids: int) -> int:
    """How many of the paper's buckets the ids take."""
    return len(np.unique(bucket_of(ids, BUCKETS)))


def merged(ids: int, of: int, salt: str = "") -> NDArray[np.int64]:
    """For each id the first one of its bucket. The buckets are to `ids` as the paper's 1,000,000 are to `of`."""
    _, first, place = np.unique(bucket_of(ids, round(BUCKETS * ids / of), salt), return_index=True, return_inverse=True)
    return first[place]


class Split(NamedTuple):
    """The steps of one epoch, and the ratings that are tested."""

    steps: list[Batch]
    tested: Batch

    @classmethod
    def draw(cls, shown: Ratings, seed: int, batch: int = BATCH) -> Split:
        order = np.random.default_rng(seed).permutation(len(shown.user))
        cut = len(order) * 4 // 5
        steps = [_batch(shown, order[start : min(start + batch, cut)]) for start in range(0, cut, batch)]
        return cls(steps, _batch(shown, order[cut:]))


def _batch(shown: Ratings, rows: NDArray[np.int64]) -> Batch:
    return batch_of({"user": shown.user[rows], "movie": shown.movie[rows]}, shown.stars[rows, None] >= 3.5)


def curve(split: Split, seed: int, epochs: int = EPOCHS, model: str = MODEL) -> list[float]:
    """The AUC of the tested ratings after each epoch."""
    learner = Learner(load(model, DECLARATION, seed), Settings(max(step.size for step in split.steps), seed))
    aucs = []
    for _ in range(epochs):
        for step in split.steps:
            learner.train(step)
        aucs.append(auc(split.tested.labels[:, 0], learner.score(split.tested)[:, 0]))
    return aucs


def run(seeds: Sequence[int]) -> Part:
    """Table 1, then both curves of Figure 7."""
    rows = [
        row(f"Monolith's Table 1: buckets that its {ids:,} {name} take", [used(ids)], f"{paper:,}")
        for name, ids, paper in (("users", USERS, 149_970), ("movies", MOVIES, 57_361))
    ]
    shown = ratings()
    users, movies = (int(ids.max()) + 1 for ids in (shown.user, shown.movie))
    own, hashed, lost = [], [], []
    for seed in seeds:
        salt = f"{seed}:" if seed else ""
        of_user, of_movie = merged(users, USERS, salt), merged(movies, MOVIES, salt)
        colliding = shown._replace(user=of_user[shown.user], movie=of_movie[shown.movie])
        own.append(curve(Split.draw(shown, seed), seed))
        hashed.append(curve(Split.draw(colliding, seed), seed))
        lost.append([1 - len(np.unique(of)) / len(of) for of in (of_user, of_movie)])
    gains = np.subtract(own, hashed)
    title = "MovieLens 1M, DeepFM"
    for place, name in enumerate(("users", "movies")):
        rows.append(row(f"{title}: share of the {name} that lose their row by hashing", [of[place] for of in lost]))
    for epoch in range(EPOCHS):
        rows.append(row(f"{title}, epoch {epoch + 1}: AUC, a row for each id", [aucs[epoch] for aucs in own]))
        rows.append(row("... less that of hashed ids", gains[:, epoch].tolist(), "> 0 in each seed"))
    return Part(rows, {"collisionless_epochs_won": float((gains > 0).all(0).sum())})
