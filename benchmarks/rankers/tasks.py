"""Measures MMoE against a shared bottom of equal multiplications: on generated tasks, and on KuaiRand.

The generated tasks are those of the MMoE paper (Ma et al., KDD 2018, section 3.2) as clicks: with unit weights u_a and
u_b of cosine 0.5, task t's logit is u_t . x + 2 (sin(c_1 u_t . x + d_1) + sin(c_2 u_t . x + d_2)). The figure is the
mean cross-entropy with the true probabilities after one pass. The shared bottom is the MMoE of one expert; DeepFM's
tower of ReLU is a second one. On KuaiRand it is the AUC of the last fifth after one pass over the four fifths before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.parts import Part, low_end, row
from common.auc import auc
from streaming.declaration import Declaration, Feature
from streaming.example import Batch, batches, concat
from streaming.source import load as load_source
from tests.support.batches import batch_of
from training.learn.learner import Learner, Settings
from training.models.mmoe import MMoE
from training.models.model import load

INPUTS, EXAMPLES, TESTED, COSINE = 8, 100_000, 20_000, 0.5
GENERATED = Declaration(
    "generated",
    (Feature("all", "id"), *(Feature(f"x{i}", "number") for i in range(INPUTS))),
    ("a", "b"),
    "a",
    60_000,
)
RATES = "dense_rate=0.1&row_scale=0.02"
EXPERTS = f"mmoe?dim=1&bottom=0&experts=8&units=16&{RATES}"
KUAIRAND = "kuairand?days=12&live_days=2"
KUAIRAND_TASKS = {"click": ">= -0.002", "long_view": ">= -0.002", "like": ""}


def generated(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]]:
    """Inputs [n, inputs], true probabilities and labels [n, 2]."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(INPUTS, 2)))
    weights = np.stack([u[:, 0], COSINE * u[:, 0] + np.sqrt(1 - COSINE**2) * u[:, 1]], 1)
    rate, phase = rng.uniform(1, 3, (2, 1, 1)), rng.uniform(0, 2 * np.pi, (2, 1, 1))
    x = rng.normal(size=(EXAMPLES + TESTED, INPUTS)).astype(np.float32)
    z = x @ weights
    p = 1 / (1 + np.exp(-(z + 2 * np.sin(rate * z + phase).sum(0))))
    return x, p, (rng.uniform(size=p.shape) < p).astype(np.float32)


def loss(model: str, seed: int) -> float:
    """The mean cross-entropy of both tasks, after one pass."""
    x, p, labels = generated(seed)

    def shown(start: int, stop: int) -> Batch:
        numbers = {f"x{i}": x[start:stop, i] for i in range(INPUTS)}
        return batch_of({"all": np.zeros(stop - start, np.int64), **numbers}, labels[start:stop])

    learner = Learner(load(model, GENERATED, seed), Settings(seed=seed))
    for start in range(0, EXAMPLES, 512):
        learner.train(shown(start, min(start + 512, EXAMPLES)))
    logits = learner.score(shown(EXAMPLES, len(x)))
    return float((np.logaddexp(0, logits) - p[EXAMPLES:] * logits).mean())


def multiplications(model: str, declaration: Declaration) -> int:
    built = load(model, declaration)
    if not isinstance(built, MMoE):
        raise TypeError(f"{model} is no MMoE")
    return built.multiplications()


def equal(experts: str, bottom: str, declaration: Declaration) -> str:
    """The model of one expert, `bottom` without its units, whose multiplications are nearest those of `experts`."""
    one, two = (multiplications(f"{bottom}&experts=1&units={units}", declaration) for units in (1, 2))
    return f"{bottom}&experts=1&units={1 + round((multiplications(experts, declaration) - one) / (two - one))}"


def on_kuairand(seeds: Sequence[int]) -> tuple[list[dict[str, Any]], float]:
    """The rows, and the lower end of the 95 % interval of MMoE less shared bottom, AUC of click."""
    source = load_source(KUAIRAND)
    declaration = source.declaration
    parts = [batch for part in (source.history, source.live) for batch in batches(part(), declaration, 8192)]
    examples = concat(parts)
    cut = examples.size * 4 // 5
    before, after = examples.slice(0, cut), examples.slice(cut, examples.size)
    experts = "mmoe?bottom=64&experts=4&units=32"
    models = {"MMoE": experts, "shared bottom": equal(experts, "mmoe?bottom=64", declaration)}
    steps = [before.slice(start, start + 512) for start in range(0, cut, 512)]
    figures: dict[tuple[str, str], list[float]] = {}
    shares: list[NDArray[np.float32]] = []
    for seed in seeds:
        for name, spec in models.items():
            learner = Learner(load(spec, declaration, seed), Settings(seed=seed))
            for step in steps:
                learner.train(step)
            scores = learner.score(after)
            for task in KUAIRAND_TASKS:
                place = declaration.tasks.index(task)
                figures.setdefault((name, task), []).append(auc(after.labels[:, place], scores[:, place]))
            if name == "MMoE" and isinstance(learner.model, MMoE):
                shares.append(learner.observe(after, learner.model.gates).mean(0))  # [tasks, experts]
    rows, lows = [], {}
    for task, goal in KUAIRAND_TASKS.items():
        ours, theirs = figures["MMoE", task], figures["shared bottom", task]
        gain = np.subtract(ours, theirs)
        lows[task] = low_end(gain)
        title = f"AUC of {task}, KuaiRand, last fifth"
        rows += [row(f"{title}: MMoE", ours), row(f"{title}: MMoE less shared bottom", gain.tolist())]
        rows += [row(f"{title}: the low end of that difference, 95 %", [lows[task]], goal)]
    least = [float(share.max(0).min()) for share in shares]
    entropy = [float(-(share * np.log(share)).sum(1).mean() / np.log(share.shape[1])) for share in shares]
    rows.append(row("MMoE's gates, KuaiRand: the least used expert's mean weight in its best task", least, ">= 0.01"))
    rows.append(row("MMoE's gates, KuaiRand: entropy of a task's mean weights, 1 is even", entropy))
    return rows, lows["click"]


def run(seeds: Sequence[int]) -> Part:
    """Generated tasks with twice the seeds, then KuaiRand."""
    drawn = range(2 * len(seeds))
    bottom = equal(EXPERTS, f"mmoe?dim=1&bottom=0&{RATES}", GENERATED)
    tower = f"deepfm?dim=1&hidden={bottom.rpartition('=')[2]}&{RATES}"
    experts, shared, deep = ([loss(model, seed) for seed in drawn] for model in (EXPERTS, bottom, tower))
    wins = [float(a < b) for a, b in zip(experts, shared, strict=True)]
    over_deep = [float(a < b) for a, b in zip(experts, deep, strict=True)]
    title = "log loss, two generated tasks of cosine 0.5"
    rows = [row(f"{title}: MMoE", experts), row(f"{title}: shared bottom (one expert)", shared)]
    rows += [row(f"{title}: shared bottom (DeepFM)", deep)]
    rows += [row("share of seeds in which MMoE has less than the shared bottom of one expert", wins, ">= 0.9")]
    rows += [row("share of seeds in which MMoE has less than DeepFM", over_deep)]
    of_kuairand, low = on_kuairand(seeds)
    return Part(rows + of_kuairand, {"mmoe_wins": sum(wins), "mmoe_kuairand_low": low})
