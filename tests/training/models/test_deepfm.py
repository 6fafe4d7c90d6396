"""The ranker and its step against plain NumPy loops in float64, and its calibration under sampled negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from streaming.declaration import Declaration, Feature
from streaming.example import Batch, Ragged, decode
from streaming.hashing import draw
from tests.support.batches import batch_of
from training.learn.learner import Learner, Settings
from training.models.model import load

SMALL = Declaration(
    "small",
    (
        Feature("user", "id"),
        Feature("item", "id", table="clip"),
        Feature("history", "ids", table="clip"),  # shares the item's rows
        Feature("age", "number"),
        Feature("tags", "ids"),
        Feature("price", "number"),
    ),
    ("click", "like"),
    "click",
    60_000,
)
ID_FEATURES = ("user", "item", "history", "tags")


def a_batch(n: int, seed: int) -> Batch:
    """Few ids, so that they repeat within and across features; some lists are empty."""
    rng = np.random.default_rng(seed)

    def ragged() -> Ragged:
        lengths = rng.integers(0, 4, n)
        return Ragged(rng.integers(0, 6, lengths.sum()), np.concatenate([[0], np.cumsum(lengths)]))

    features = {
        "user": rng.integers(0, 4, n),
        "item": rng.integers(0, 6, n),
        "history": ragged(),
        "age": rng.normal(size=n).astype(np.float32),
        "tags": ragged(),
        "price": rng.normal(size=n).astype(np.float32),
    }
    labels = rng.integers(0, 2, (n, 2))
    return batch_of(features, labels, rng.integers(0, 2, (n, 2)), rng.uniform(0.1, 1, n))


def ids_of(batch: Batch, feature: str, row: int) -> list[int]:
    column = batch.features[feature]
    if isinstance(column, Ragged):
        return column.values[column.row_splits[row] : column.row_splits[row + 1]].tolist()
    return [int(column[row])]


def oracle_logits(batch: Batch, tables: dict[str, dict[int, np.ndarray]], weights: dict[str, np.ndarray]) -> np.ndarray:
    """DeepFM in float64 loops, pair by pair: shares no code and no algebra with the model."""
    table_of = {f.name: f.table for f in SMALL.features}
    logits = np.zeros((batch.size, 2))
    for row in range(batch.size):
        fields = []
        for name in ID_FEATURES:
            found = [tables[table_of[name]].get(i, np.zeros(4)) for i in ids_of(batch, name, row)]
            fields.append(np.mean(found, axis=0) if found else np.zeros(4))
        numbers = [float(batch.features[name][row]) for name in ("age", "price")]
        pairs = sum(fields[i][1:] @ fields[j][1:] for i in range(4) for j in range(i))
        linear = sum(f[0] for f in fields)
        h = np.concatenate([*(f[1:] for f in fields), numbers])
        for layer in ("hidden_0", "hidden_1"):
            h = np.maximum(0, h @ weights[f"{layer}_kernel"] + weights[f"{layer}_bias"])
        logits[row] = h @ weights["heads_kernel"] + weights["heads_bias"]
        logits[row] += linear * weights["linear_scale"] + pairs * weights["pair_scale"]
        logits[row] += np.array(numbers) @ weights["number_weights"]
    return logits


def oracle_loss(batch: Batch, logits: np.ndarray, size: int) -> float:
    p = 1 / (1 + np.exp(-(logits - np.log(batch.pi)[:, None])))
    each = -(batch.labels * np.log(p) + (1 - batch.labels) * np.log(1 - p))
    return float((batch.weights * each).sum() / size)


def contents(learner: Learner) -> tuple[dict[str, dict[int, np.ndarray]], dict[str, np.ndarray]]:
    tables = {}
    for name, table in learner.tables.items():
        found = table.export_since(0)
        tables[name] = dict(zip(found.keys.numpy().tolist(), found.rows.numpy().astype(np.float64), strict=True))
    return tables, {name: w.numpy().astype(np.float64) for name, w in learner.weights.items()}


def a_learner(**settings: Any) -> Learner:
    """With rows of visible size and scales that differ, so that no term of the formula can hide."""
    query = "&".join(f"{name}={value}" for name, value in {"dim": 3, "row_scale": 0.5, **settings}.items())
    learner = Learner(load(f"deepfm?{query}", SMALL), Settings(batch=64))
    rng = np.random.default_rng(5)
    for name, weight in learner.weights.items():
        if "kernel" not in name:
            weight.assign(rng.normal(size=weight.shape).astype(np.float32))
    return learner


def test_the_forward_function_is_the_formula() -> None:
    learner = a_learner()
    learner.train(a_batch(64, 1))
    batch = a_batch(50, 2)
    np.testing.assert_allclose(learner.score(batch), oracle_logits(batch, *contents(learner)), rtol=1e-5, atol=1e-6)


def test_scoring_and_testing_read_zeros_for_unknown_ids_and_scoring_changes_nothing() -> None:
    learner = a_learner()
    batch = a_batch(40, 3)
    expected = oracle_logits(batch, {"user": {}, "clip": {}, "tags": {}}, contents(learner)[1])
    np.testing.assert_allclose(learner.score(batch), expected, rtol=1e-5, atol=1e-6)
    assert all(table.stats()["size"] == 0 for table in learner.tables.values())
    np.testing.assert_allclose(learner.train(batch).logits, expected, rtol=1e-5, atol=1e-6)
    assert learner.tables["user"].stats()["size"] == len(set(batch.features["user"].tolist()))


def test_the_loss_is_the_masked_sum_over_a_constant() -> None:
    batch, logits = a_batch(30, 4), np.random.default_rng(0).normal(size=(30, 2))
    model = load("deepfm", SMALL)
    outputs = {task: tf.constant(logits[:, k], tf.float32) for k, task in enumerate(SMALL.tasks)}
    labels, weights, pi = (tf.constant(x, tf.float32) for x in (batch.labels, batch.weights, batch.pi))
    assert float(model.loss(outputs, labels, weights, pi, 64)) == pytest.approx(
        oracle_loss(batch, logits, 64), rel=1e-5
    )
    assert float(model.loss(outputs, labels, tf.zeros([30, 2]), pi, 64)) == 0


def test_a_step_is_adagrad_on_the_numeric_gradient() -> None:
    """Rows that several examples and features share get the sum of their gradients, in one step."""
    learner = a_learner(row_rate=0.05, row_start=0.01, dense_rate=0.03, dense_start=0.02)
    batch = a_batch(20, 6)
    learner.train(a_batch(64, 5))
    for table in learner.tables.values():  # every id has a row before the step that is checked
        table.lookup(tf.range(6, dtype=tf.int64))
    tables, weights = contents(learner)
    slots = {n: t.export_since(0) for n, t in learner.tables.items()}
    started = {
        n: dict(zip(s.keys.numpy().tolist(), s.slots.numpy().astype(np.float64), strict=True)) for n, s in slots.items()
    }
    dense_started = {n: a.numpy().astype(np.float64) for n, a in learner.slots.items()}
    outcome = learner.train(batch)

    def value() -> float:
        return oracle_loss(batch, oracle_logits(batch, tables, weights), 64)

    assert outcome.loss == pytest.approx(value(), rel=1e-5)
    after_tables, after_weights = contents(learner)

    def gradient(array: np.ndarray, at: Any) -> float:
        was, step = array[at], 1e-5
        array[at] = was + step
        above = value()
        array[at] = was - step
        below = value()
        array[at] = was
        return (above - below) / (2 * step)

    rng = np.random.default_rng(8)
    for name, rows in tables.items():
        for key, row in rows.items():
            for at in range(4):
                g, start = gradient(row, at), started[name][key][at]
                expected = row[at] - 0.05 * g / np.sqrt(start + g * g + 1e-7)
                assert after_tables[name][key][at] == pytest.approx(expected, abs=2e-5), (name, key, at)
    for name, weight in weights.items():
        for flat in rng.choice(weight.size, min(weight.size, 4), replace=False):
            at = np.unravel_index(flat, weight.shape)
            g = gradient(weight, at)
            expected = weight[at] - 0.03 * g / np.sqrt(dense_started[name][at] + g * g)
            assert after_weights[name][at] == pytest.approx(expected, abs=2e-5), (name, at)


def test_an_empty_batch_and_examples_without_weight_change_no_weight() -> None:
    learner = a_learner()
    learner.train(a_batch(64, 1))
    tables, weights = contents(learner)
    learner.train(decode([], SMALL))
    silent = a_batch(30, 2)
    silent.weights[:] = 0
    learner.train(silent)
    after_tables, after_weights = contents(learner)
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, after_weights[name])
    for name, rows in tables.items():
        for key, row in rows.items():
            np.testing.assert_array_equal(row, after_tables[name][key])


def test_a_batch_larger_than_the_constant_is_refused() -> None:
    with pytest.raises(ValueError, match="at most batch=64 examples, given were 65"):
        a_learner().train(a_batch(65, 1))


def test_dense_weights_have_an_order_and_input_names() -> None:
    names = list(load("deepfm", SMALL).dense)
    assert names == list(load("deepfm", SMALL, seed=3).dense)
    assert all(name.isidentifier() for name in names) and len(set(names)) == len(names)


def test_extreme_ids_have_rows_of_their_own() -> None:
    learner = a_learner()
    ids = np.array([2**63 - 1, -1, 0, -(2**63) + 2], np.int64)
    batch = a_batch(4, 1)
    batch.features["user"] = ids
    learner.train(batch)
    assert sorted(learner.tables["user"].export_since(0).keys.numpy().tolist()) == sorted(ids.tolist())


def test_both_correlated_tasks_are_calibrated_under_sampled_negatives() -> None:
    """pi = 0.1, one draw an impression: mean score as served / mean true rate is 0.98 to 1.02 (arXiv 2110.13048, 4)."""
    declaration = Declaration(
        "twin", (Feature("user", "id"), Feature("item", "id"), Feature("age", "number")), ("click", "like"), "click",
        60_000,
    )  # fmt: skip
    n, first_judged, pi = 300_000, 100_000, 0.1
    rng = np.random.default_rng(11)
    user, item, age = rng.integers(0, 40, n), rng.integers(0, 60, n), rng.normal(size=n).astype(np.float32)
    common = rng.normal(0, 0.7, 40)[user] + rng.normal(0, 0.7, 60)[item] + 0.5 * age
    truth = 1 / (1 + np.exp(-np.stack([common - 1.5, 0.8 * common - 2.5], 1)))
    shock = rng.uniform(size=n)  # shared: who likes has clicked, far beyond what the features say
    labels = (shock[:, None] < truth).astype(np.float32)
    kept = draw([f"i{k}" for k in range(n)], "minutehand") < pi

    def shown(rows: np.ndarray, y: np.ndarray, w: np.ndarray) -> Batch:
        features = {"user": user[rows], "item": item[rows], "age": age[rows]}
        return batch_of(features, y, w, np.full(len(rows), pi))

    learner = Learner(load("deepfm?dim=4", declaration), Settings())
    served, true = np.zeros(2), np.zeros(2)
    for start in range(0, n, 2048):
        rows = np.arange(start, min(start + 2048, n))
        if start >= first_judged:  # scored, then learned
            logits = learner.score(shown(rows, labels[rows], labels[rows]))
            served += (1 / (1 + np.exp(-logits))).sum(0)
            true += truth[rows].sum(0)
        one_of = [rows[labels[rows, k] > 0] for k in range(2)]
        records = [(r, np.eye(2)[[k] * len(r)], np.eye(2)[[k] * len(r)]) for k, r in enumerate(one_of)]
        negative = rows[kept[rows] & (labels[rows].min(1) == 0)]
        records.append((negative, np.zeros((len(negative), 2)), 1 - labels[negative]))
        rows, y, w = (np.concatenate([r[i] for r in records]) for i in range(3))
        order = rng.permutation(len(rows))
        for part in np.split(order, range(512, len(order), 512)):
            learner.train(shown(rows[part], y[part], w[part]))
    ratio = served / true
    assert 0.98 < ratio[0] < 1.02 and 0.98 < ratio[1] < 1.02, ratio
