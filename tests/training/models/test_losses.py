"""Both kinds of tasks against NumPy, and the value task's expectation under sampled negatives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from streaming.declaration import Declaration, Feature
from tests.support.batches import batch_of
from training.learn.learner import Learner, Settings
from training.models.model import load

PLAIN = Declaration("films", (Feature("film", "id"),), ("click", "watch"), "click", 60_000)
FILMS = replace(PLAIN, values=("watch",))


def test_the_loss_of_each_kind_is_the_formula() -> None:
    rng = np.random.default_rng(1)
    n = 40
    logits, labels = rng.normal(size=(n, 2)), rng.integers(0, 2, (n, 2))
    weights, pi, values = rng.uniform(size=(n, 2)), rng.uniform(0.1, 1, n), rng.uniform(0, 60, (n, 2))
    total = 0.0
    for row in range(n):
        for task in range(2):
            p = 1 / (1 + np.exp(-(logits[row, task] - np.log(pi[row]))))
            y = labels[row, task]
            each = -(np.log(p) if y else np.log(1 - p))
            if task == 1:
                each = -y * values[row, 1] * np.log(p) - (pi[row] if y else 1) * np.log(1 - p)
            total += weights[row, task] * each
    outputs = {task: tf.constant(logits[:, k], tf.float32) for k, task in enumerate(FILMS.tasks)}
    inputs = (tf.constant(x, tf.float32) for x in (labels, weights, pi))
    loss = load("deepfm", FILMS).loss(outputs, *inputs, 64, tf.constant(values, tf.float32))
    assert float(loss) == pytest.approx(total / 64, rel=1e-5)


@pytest.mark.parametrize("pi", [1.0, 0.2])
def test_a_value_task_learns_the_expected_value_whatever_share_of_the_negatives_is_kept(pi: float) -> None:
    """Three films of 30 %, 60 % and 90 % starts, and 1, 4 and 9 s when started: 0.3, 2.4 and 8.1 s expected."""
    rng = np.random.default_rng(2)
    n = 40_000
    film = rng.integers(0, 3, n)
    started = rng.random(n) < 0.3 * (film + 1)
    seconds = rng.exponential((film + 1.0) ** 2)
    kept = np.flatnonzero(started | (rng.random(n) < pi))
    learner = Learner(load("logistic?rate=0.2", FILMS), Settings(batch=256))
    for rows in np.array_split(kept, len(kept) // 256 + 1):
        labels = np.stack([started[rows]] * 2, 1)
        values = np.stack([np.full(len(rows), np.nan), np.where(started[rows], seconds[rows], np.nan)], 1)
        learner.train(batch_of({"film": film[rows]}, labels, pi=pi, values=values))
    expected = np.exp(learner.score(batch_of({"film": np.arange(3)}, np.zeros((3, 2))))[:, 1])
    np.testing.assert_allclose(expected, [0.3, 2.4, 8.1], rtol=0.12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": ("play",)}, "a value task is 'play', allowed are click, watch"),
        ({"values": ("click",)}, "judged is 'click', allowed is a task without a value: watch"),
        ({"rank": {"like": 1}}, "rank has 'like', allowed are click, watch"),
        ({"rank": {"click": float("nan")}}, "rank of click is nan, allowed is a number, -100 to 100"),
    ],
)
def test_a_wrong_kind_or_rank_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **change)


def test_only_the_kinds_are_part_of_what_a_lineage_was_learned_under() -> None:
    assert replace(PLAIN, rank={"click": 1}).sha256 == PLAIN.sha256 != FILMS.sha256
    assert Declaration.from_json(FILMS.to_json()) == FILMS
