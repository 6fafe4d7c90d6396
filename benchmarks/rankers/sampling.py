"""Measures the calibration under sampled negatives: 10, 5 and 1 % of them, two tasks that depend on each other.

Who likes has clicked, beyond what the features say. A negative is kept by one draw an impression; positives are always
kept. The figure is the mean score as served / the mean true rate of the last part, each score before its example is
learned. The control learns the same records with pi = 1: the loss without the correction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.parts import Part, row
from streaming.declaration import Declaration, Feature
from streaming.example import Batch
from streaming.hashing import draw
from tests.support.batches import batch_of
from training.learn.learner import Learner, Settings
from training.models.model import load

FEATURES = (Feature("user", "id"), Feature("item", "id"), Feature("age", "number"))
DECLARATION = Declaration("twin", FEATURES, ("click", "like"), "click", 60_000)
MODEL = "deepfm?dim=4&row_rate=0.05&row_scale=0.02"
EXAMPLES, JUDGED = 400_000, 200_000
SHARES = {0.1: (2, EXAMPLES, JUDGED), 0.05: (2, EXAMPLES, JUDGED), 0.01: (5, 1_000_000, 600_000)}
"""Share of the negatives -> seeds, impressions and how many of them are judged: 1 % keeps few, and needs more."""


def calibration(
    pi: float, seed: int, *, corrected: bool = True, examples: int = EXAMPLES, judged: int = JUDGED
) -> NDArray[np.float64]:
    """The mean score / the mean true rate of each task, in the last `judged` of `examples` impressions."""
    rng = np.random.default_rng(seed)
    n = examples
    user, item, age = rng.integers(0, 40, n), rng.integers(0, 60, n), rng.normal(size=n).astype(np.float32)
    common = rng.normal(0, 0.7, 40)[user] + rng.normal(0, 0.7, 60)[item] + 0.5 * age
    truth = 1 / (1 + np.exp(-np.stack([common - 1.5, 0.8 * common - 2.5], 1)))
    labels = (rng.uniform(size=n)[:, None] < truth).astype(np.float32)  # one draw for both tasks
    kept = draw([f"i{seed}-{k}" for k in range(n)], "minutehand") < pi
    learner = Learner(load(MODEL, DECLARATION, seed), Settings(seed=seed))
    learned_pi = pi if corrected else 1.0

    def shown(rows: NDArray[np.int64], y: NDArray[np.float32], w: NDArray[np.float32]) -> Batch:
        return batch_of({"user": user[rows], "item": item[rows], "age": age[rows]}, y, w, learned_pi)

    served, true = np.zeros(2), np.zeros(2)
    for start in range(0, n, 4096):
        rows = np.arange(start, min(start + 4096, n))
        if start >= n - judged:
            logits = learner.score(shown(rows, labels[rows], labels[rows]))
            served += (1 / (1 + np.exp(-logits))).sum(0)
            true += truth[rows].sum(0)
        at, task = np.nonzero(labels[rows])
        one = np.eye(2, dtype=np.float32)[task]
        negative = rows[kept[rows] & (labels[rows].min(1) == 0)]
        all_rows = np.concatenate([rows[at], negative])
        y = np.concatenate([one, np.zeros((len(negative), 2), np.float32)])
        w = np.concatenate([one, 1 - labels[negative]])
        order = rng.permutation(len(all_rows))
        for part in np.split(order, range(512, len(order), 512)):
            learner.train(shown(all_rows[part], y[part], w[part]))
    ratio: NDArray[np.float64] = served / true
    return ratio


def run(seeds: Sequence[int]) -> Part:
    """Each share with the correction, and 10 % without it."""
    rows, summary = [], {}
    for pi, (number, examples, judged) in SHARES.items():
        ratios = np.array([calibration(pi, seed, examples=examples, judged=judged) for seed in seeds[:number]])
        for place, task in enumerate(DECLARATION.tasks):
            rows.append(
                row(f"mean score / rate of {task}, {pi:.0%} of negatives", list(ratios[:, place]), "0.98 to 1.02")
            )
        worst = max(ratios.mean(0), key=lambda ratio: abs(ratio - 1))
        summary[f"calibration_{pi * 100:.0f}pct"] = float(worst)
    plain = [calibration(0.1, seed, corrected=False) for seed in seeds[:2]]
    for place, task in enumerate(DECLARATION.tasks):
        rows.append(row(f"mean score / rate of {task}, 10% of negatives, not corrected", [r[place] for r in plain]))
    return Part(rows, summary)
