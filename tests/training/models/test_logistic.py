"""Logistic regression against a plain NumPy loop, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streaming.declaration import Declaration, Feature
from tests.training.models.test_deepfm import ID_FEATURES, SMALL, a_batch, contents, ids_of
from training.learn.learner import Learner, Settings
from training.models.model import load

PROJECT = Path(__file__).parents[3]


def test_the_forward_function_is_the_formula() -> None:
    learner = Learner(load("logistic?rate=0.5", SMALL), Settings(batch=64))
    for seed in range(3):
        learner.train(a_batch(64, seed))
    batch = a_batch(50, 9)
    tables, weights = contents(learner)
    table_of = {f.name: f.table for f in SMALL.features}
    expected = np.zeros((batch.size, 2))
    for row in range(batch.size):
        expected[row] = weights["bias"]
        for name in ID_FEATURES:
            rows = [tables[table_of[name]].get(i, np.zeros(2)) for i in ids_of(batch, name, row)]
            expected[row] += np.mean(rows, axis=0) if rows else 0
        numbers = [float(batch.features[name][row]) for name in ("age", "price")]
        expected[row] += np.array(numbers) @ weights["number_weights"]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(learner.score(batch), expected, rtol=1e-5, atol=1e-6)


def test_the_worked_example_of_the_page_is_short_and_defines_what_the_page_says() -> None:
    text = (PROJECT / "training" / "models" / "logistic.py").read_text()
    assert (
        len(text.splitlines()) <= 60 and "](../training/models/logistic.py)" in (PROJECT / "docs/models.md").read_text()
    )
    for part in ("self.tables =", "self.dense =", "def outputs(", "build = "):
        assert part in text


def test_it_learns_what_a_row_says_and_works_without_numbers() -> None:
    batch = a_batch(64, 1)
    batch.labels[:, 0] = batch.features["user"] % 2
    batch.weights[:], batch.pi[:] = 1, 1
    learner = Learner(load("logistic?rate=0.5", SMALL), Settings(batch=64))
    losses = [learner.train(batch).loss for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    assert ((learner.score(batch)[:, 0] > 0) == (batch.labels[:, 0] > 0)).mean() > 0.95
    alone = Declaration("alone", (Feature("user", "id"),), ("click", "like"), "click", 60_000)
    logits = Learner(load("logistic", alone), Settings(batch=64)).score(batch)
    assert logits.shape == (64, 2) and (logits == 0).all()
