"""Measures what the position tower is worth, in a simulator whose truth is known.

Lists of 10 items are shown, of 12 candidates out of 400. An old ranker orders them by its own wrong opinion of each
item, with noise of half its spread; the control shows them in random order. Examination falls as 1 / place^0.9. There
are two click laws: it adds its logarithm to the logit, or it is a probability that multiplies the relevance. The figure
is Kendall's tau between the items' scores and the truth, after one pass over 20,000 lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.parts import Part, row
from streaming.declaration import Declaration, Feature
from tests.support.batches import batch_of
from training.learn.learner import Learner, Settings
from training.models.model import load

ITEMS, CANDIDATES, SLOTS, LISTS = 400, 12, 10, 20_000
DECLARATION = Declaration("lists", (Feature("item", "id"),), ("click",), "click", 60_000)
MODEL = "deepfm?dim=1&hidden=4&row_rate=0.1&dense_rate=0.2&row_scale=0.02"
LAWS, ORDERS = ("additive", "examination"), ("old ranker", "random")


class Lists(NamedTuple):
    """`truth` float64[items]; of each exposure the item, its place and the click."""

    truth: NDArray[np.float64]
    item: NDArray[np.int64]
    place: NDArray[np.int64]
    click: NDArray[np.bool_]


def lists(seed: int, law: str, order: str, number: int = LISTS) -> Lists:
    """Draws the log of one seed."""
    rng = np.random.default_rng(seed)
    truth, old = rng.normal(-1, 1, ITEMS), rng.normal(size=ITEMS)
    candidates = np.argpartition(rng.random((number, ITEMS), np.float32), CANDIDATES, 1)[:, :CANDIDATES]
    opinion = rng.normal(size=candidates.shape)
    if order == "old ranker":
        opinion = old[candidates] + 0.5 * opinion
    item = np.take_along_axis(candidates, np.argsort(-opinion, 1)[:, :SLOTS], 1)
    place = np.broadcast_to(np.arange(SLOTS), item.shape)
    examination = (1.0 + place) ** -0.9
    logit = truth[item] + (np.log(examination) if law == "additive" else 0)
    p = 1 / (1 + np.exp(-logit)) * (1 if law == "additive" else examination)
    return Lists(truth, item.ravel(), place.ravel(), (rng.random(p.shape) < p).ravel())


def tau(made: Lists, model: str, seed: int) -> float:
    """Kendall's tau of the served scores with the truth, after one pass over the lists."""
    learner = Learner(load(model, DECLARATION, seed), Settings(seed=seed))
    for start in range(0, len(made.item), 512):
        part = slice(start, start + 512)
        learner.train(batch_of({"item": made.item[part]}, made.click[part, None], position=made.place[part]))
    scores = learner.score(batch_of({"item": np.arange(ITEMS)}, np.zeros((ITEMS, 1))))[:, 0]
    agree = np.sign(scores[:, None] - scores) * np.sign(made.truth[:, None] - made.truth)
    return float(agree.sum() / (ITEMS * (ITEMS - 1)))


def run(seeds: Sequence[int]) -> Part:
    """Tau without the tower, and its gain by the tower, for each law and order."""
    rows, gains = [], {}
    for law in LAWS:
        for order in ORDERS:
            logs = [lists(seed, law, order) for seed in seeds]
            plain = [tau(made, MODEL, seed) for seed, made in zip(seeds, logs, strict=True)]
            tower = [tau(made, f"{MODEL}&positions={SLOTS}", seed) for seed, made in zip(seeds, logs, strict=True)]
            gain = gains[law, order] = np.subtract(tower, plain)
            title, goal = f"Kendall's tau, {law} law, {order}", ">= 0.1" if order == "old ranker" else "|.| <= 0.01"
            rows += [row(f"{title}: without the tower", plain), row(f"{title}: gain by the tower", gain.tolist(), goal)]
    means = {key: float(np.mean(gain)) for key, gain in gains.items()}
    return Part(
        rows,
        {
            "position_tau_gain": min(means[law, "old ranker"] for law in LAWS),
            "position_tau_random": max((means[law, "random"] for law in LAWS), key=abs),
        },
    )
