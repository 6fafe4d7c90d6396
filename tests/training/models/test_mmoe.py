"""MMoE against plain NumPy loops in float64, and the shared bottom as its case of one expert."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from streaming.example import Batch
from tests.training.models.test_deepfm import ID_FEATURES, SMALL, a_batch, contents, ids_of
from training.learn.learner import Learner, Settings
from training.models.mmoe import MMoE
from training.models.model import load

SHAPE = "dim=3&bottom=5&experts=3&units=4"


def a_learner(spec: str) -> Learner:
    """With rows of visible size and weights that differ, so that no term of the formula can hide."""
    learner = Learner(load(f"mmoe?row_scale=0.5&{spec}", SMALL), Settings(batch=64))
    rng = np.random.default_rng(5)
    for weight in learner.weights.values():
        weight.assign(rng.normal(size=weight.shape).astype(np.float32))
    learner.train(a_batch(64, 1))
    return learner


def oracle(learner: Learner, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, tasks] and gates [n, tasks, experts], example by example and expert by expert."""
    tables, w = contents(learner)
    table_of = {f.name: f.table for f in SMALL.features}
    experts, units = w["experts_scale"].shape
    logits, gates = np.zeros((batch.size, 2)), np.zeros((batch.size, 2, experts))
    for row in range(batch.size):
        fields = []
        for name in ID_FEATURES:
            found = [tables[table_of[name]].get(i, np.zeros(4)) for i in ids_of(batch, name, row)]
            fields.append(np.mean(found, axis=0) if found else np.zeros(4))
        numbers = np.array([float(batch.features[name][row]) for name in ("age", "price")])
        z = np.concatenate([*(f[1:] for f in fields), numbers])
        if "bottom_kernel" in w:
            z = np.maximum(0, z @ w["bottom_kernel"] + w["bottom_bias"])
        outputs = []
        for k in range(experts):
            raw = z @ w["experts_kernel"][:, k * units : (k + 1) * units]
            raw = (raw - raw.mean()) / np.sqrt(raw.var() + 1e-3) * w["experts_scale"][k] + w["experts_shift"][k]
            outputs.append(raw / (1 + np.exp(-raw)))
        pairs = sum(fields[i][1:] @ fields[j][1:] for i in range(4) for j in range(i))
        for t in range(2):
            weights = np.exp(z @ w["gates_kernel"][:, t])
            gates[row, t] = weights / weights.sum()
            mixed = sum(g * e for g, e in zip(gates[row, t], outputs, strict=True))
            logits[row, t] = mixed @ w["heads_kernel"][:, t] + w["heads_bias"][t]
            logits[row, t] += sum(f[0] for f in fields) * w["linear_scale"][t] + pairs * w["pair_scale"][t]
            logits[row, t] += numbers @ w["number_weights"][:, t]
    return logits, gates


def gates_of(learner: Learner, batch: Batch) -> np.ndarray:
    model = learner.model
    assert isinstance(model, MMoE)
    return learner.observe(batch, model.gates)


@pytest.mark.parametrize("spec", [SHAPE, "dim=3&bottom=0&experts=2&units=3", "dim=3&experts=1"])
def test_the_forward_function_is_the_formula(spec: str) -> None:
    learner, batch = a_learner(spec), a_batch(40, 2)
    logits, gates = oracle(learner, batch)
    np.testing.assert_allclose(learner.score(batch), logits, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(gates_of(learner, batch), gates, rtol=1e-4, atol=1e-5)
    if "experts=1" in spec:
        assert (gates == 1).all()


def test_experts_that_are_equal_make_the_gates_irrelevant() -> None:
    """So the shared bottom is the special case: three equal experts answer as one of them does."""
    many, one = a_learner(SHAPE), a_learner(SHAPE.replace("experts=3", "experts=1"))
    one.tables = many.tables
    for name, weight in many.weights.items():
        if name.startswith("experts"):
            first = weight.numpy()[:, :4] if name == "experts_kernel" else weight.numpy()[:1]
            one.weights[name].assign(first)
            weight.assign(np.tile(first, (1, 3) if name == "experts_kernel" else (3, 1)))
        elif name != "gates_kernel":
            one.weights[name].assign(weight)
    batch = a_batch(40, 2)
    np.testing.assert_allclose(many.score(batch), one.score(batch), rtol=1e-4, atol=1e-5)


def test_each_weight_of_it_learns_and_it_counts_its_multiplications() -> None:
    learner = a_learner(SHAPE)
    before = {name: weight.numpy() for name, weight in learner.weights.items()}
    learner.train(a_batch(64, 3))
    assert all((before[name] != weight.numpy()).any() for name, weight in learner.weights.items())
    model = learner.model
    assert isinstance(model, MMoE) and model.multiplications() == 14 * 5 + 5 * 12 + 5 * 2 * 3 + 2 * 3 * 4 + 4 * 2


@pytest.mark.parametrize(("setting", "least"), {"experts=0": 1, "units=0": 1, "bottom=-1": 0, "dim=0": 1}.items())
def test_a_wrong_shape_is_refused_by_name(setting: str, least: int) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(ValueError, match=f"model 'mmoe': {name} is {value}, allowed is {least} or more"):
        load(f"mmoe?{setting}", SMALL)


def test_the_same_seed_gives_the_same_weights_and_experts_differ() -> None:
    first, again, other = (load("mmoe?experts=2", SMALL, seed=seed).dense["experts_kernel"] for seed in (3, 3, 4))
    assert tf.reduce_all(first.variable == again.variable) and not tf.reduce_any(first.variable == other.variable)
    assert not tf.reduce_any(first.variable[:, :32] == first.variable[:, 32:])
