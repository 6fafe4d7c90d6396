"""Measures what short rows of rare ids save and cost on KuaiRand, and that a promotion changes no score.

DeepFM learns four fifths of the examples in one pass, with rows of 16 numbers for all ids, and with rows of 4 for those
that were seen fewer than 16 times. The figures are the AUC of the last fifth and the bytes of all rows. Then as many
examples, which were learned last, pass again with weights of 0: ids are counted and promoted, and nothing is learned.
The error is the largest change of a logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from benchmarks.common.parts import Part, row
from benchmarks.rankers.tasks import KUAIRAND
from common.auc import auc
from streaming.declaration import Declaration
from streaming.example import Batch, batches, concat
from streaming.source import load as load_source
from training.learn.learner import Learner, Settings
from training.models.model import load

UNIFORM = "deepfm"
SIZED = "deepfm?sizes=" + ",".join(f"{table}:4@16" for table in ("user", "video", "author", "music", "profile"))
STEP = 512


class Outcome(NamedTuple):
    """The AUC of the judged task, and the bytes of all rows: with the optimizers' slots, and as they are served."""

    auc: float
    trained_bytes: int
    served_bytes: int


def learned(model: str, declaration: Declaration, before: Batch, seed: int) -> Learner:
    """A model after one pass."""
    learner = Learner(load(model, declaration, seed), Settings(STEP, seed))
    for start in range(0, before.size, STEP):
        learner.train(before.slice(start, start + STEP))
    return learner


def judged(learner: Learner, after: Batch) -> Outcome:
    """What a model reaches on the examples after the pass."""
    place = learner.declaration.tasks.index(learner.declaration.judged)
    sizes = [(int(t.stats()["size"]), t.dim, t.slot_floats) for t in learner.tables.values()]
    return Outcome(
        auc(after.labels[:, place], learner.score(after)[:, place]),
        sum(4 * n * (dim + slots) for n, dim, slots in sizes),
        sum(4 * n * dim for n, dim, _ in sizes),
    )


def promotions(learner: Learner, known: Batch) -> tuple[int, float]:
    """Counts examples whose ids have rows, without learning. Returns the number of promotions, and the error."""
    logits, moved = learner.score(known), 0
    seen = replace(known, weights=np.zeros_like(known.weights))
    for start in range(0, seen.size, STEP):
        moved += sum(map(len, learner.train(seen.slice(start, start + STEP)).promoted.values()))
    return moved, float(np.abs(learner.score(known) - logits).max())


def run(seeds: Sequence[int]) -> Part:
    """Both models of each seed, and the promotions of the one with short rows."""
    source = load_source(KUAIRAND)
    declaration = source.declaration
    examples = concat([b for part in (source.history, source.live) for b in batches(part(), declaration, 8192)])
    cut = examples.size * 4 // 5
    before, after = examples.slice(0, cut), examples.slice(cut, examples.size)
    uniform, sized, moves = [], [], []
    for seed in seeds:
        uniform.append(judged(learned(UNIFORM, declaration, before, seed), after))
        learner = learned(SIZED, declaration, before, seed)
        sized.append(judged(learner, after))
        moves.append(promotions(learner, before.slice(before.size - after.size, before.size)))
    pairs = list(zip(sized, uniform, strict=True))
    memory = [a.trained_bytes / b.trained_bytes for a, b in pairs]
    title = f"KuaiRand, rows of 4 and 16 numbers: {declaration.judged}"
    rows = [
        row(f"{title}, AUC of the last fifth with uniform rows", [b.auc for b in uniform]),
        row("... with short rows for rare ids, less that", [a.auc - b.auc for a, b in pairs], ">= -0.001"),
        row("... bytes of all rows / those of uniform rows, with slots", memory, "<= 0.6"),
        row("... as served", [a.served_bytes / b.served_bytes for a, b in pairs]),
        row("... promotions without learning", [float(moved) for moved, _ in moves]),
        row("... largest change of a logit by them", [error for _, error in moves], "<= 1e-6", digits=9),
    ]
    return Part(rows, {"promotion_error": max(error for _, error in moves), "dynamic_memory": float(np.mean(memory))})
