"""The optimizers: a hundred steps of each, repeated ids in every batch, against Keras and against NumPy."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from training.cuckoo import FTRL, SGD, Adagrad, Adam, Constant, Momentum, Normal, Segment, Table, Uniform, Zeros
from training.cuckoo.optimizers import Optimizer

VOCABULARY, DIM, BATCH = 60, 5, 256
keras = tf.keras.optimizers

PAIRS: dict[str, tuple[Optimizer, Any]] = {
    "sgd": (SGD(0.5), lambda: keras.SGD(0.5)),
    "sgd with decay": (SGD(0.5, weight_decay=0.02), lambda: keras.SGD(0.5, weight_decay=0.02)),
    "sgd clipped": (SGD(0.5, clip_value=0.02), lambda: keras.SGD(0.5, clipvalue=0.02)),
    "momentum": (Momentum(0.1), lambda: keras.SGD(0.1, momentum=0.9)),
    "nesterov": (Momentum(0.1, 0.8, True), lambda: keras.SGD(0.1, momentum=0.8, nesterov=True)),
    "adagrad": (Adagrad(0.05), lambda: keras.Adagrad(0.05, initial_accumulator_value=0.1)),
    "adam": (Adam(0.02), lambda: keras.Adam(0.02)),
    "adam with decay": (Adam(0.02, weight_decay=0.1), lambda: keras.AdamW(0.02, weight_decay=0.1)),
    "ftrl": (FTRL(0.3), lambda: keras.Ftrl(0.3)),
    "ftrl, all of it": (
        FTRL(0.3, start=0.2, l1=0.01, l2=0.02, shrinkage=0.03, beta=0.4),
        lambda: keras.Ftrl(
            0.3,
            initial_accumulator_value=0.2,
            l1_regularization_strength=0.01,
            l2_regularization_strength=0.02,
            l2_shrinkage_regularization_strength=0.03,
            beta=0.4,
        ),
    ),
}


def rows_of(table: Table, n: int = VOCABULARY) -> npt.NDArray[np.float32]:
    return np.asarray(table.find(np.arange(n)))


def batch_of(rng: np.random.Generator, all_of_them: bool) -> npt.NDArray[np.int64]:
    """Ids of which the popular repeat often; each of them at least once, if asked for."""
    ids = rng.zipf(1.3, BATCH) % VOCABULARY
    if all_of_them:
        ids[:VOCABULARY] = np.arange(VOCABULARY)
    return rng.permutation(ids).astype(np.int64)


@pytest.mark.parametrize("which", PAIRS)
def test_a_hundred_steps_equal_keras_on_a_dense_variable(which: str) -> None:
    rng = np.random.default_rng(4)
    ours, theirs = PAIRS[which]
    theirs = theirs()
    table = Table(DIM, "items", optimizer=ours, initializer=Normal(0.1))
    start = table.lookup(np.arange(VOCABULARY)).numpy()
    dense = tf.Variable(start)
    target = tf.constant(rng.normal(size=(BATCH, DIM)), tf.float32)

    @tf.function
    def step(ids: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((tf.gather(dense, ids) - target) ** 2) / BATCH
        # Made dense: of IndexedSlices Keras squares the parts of a repeated id, not their sum.
        theirs.apply_gradients([(tf.convert_to_tensor(tape.gradient(loss, dense)), dense)])
        rows = table.lookup(ids)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss = tf.reduce_sum((rows - target) ** 2) / BATCH
        table.apply(ids, tape.gradient(loss, rows))

    # Rules that move a weight without a gradient are Keras' only where each step names each row: ours are lazy.
    moves = which not in ("sgd", "sgd clipped", "adagrad")
    for _ in range(100):
        step(tf.constant(batch_of(rng, moves)))
    np.testing.assert_allclose(rows_of(table), dense.numpy(), rtol=1e-4, atol=2e-6)
    # a thousand times the tolerance and more: equal, and not for standing still
    assert np.abs(rows_of(table) - start).max() > 0.05


class Reference:
    """The rules in NumPy, in double, lazily: a row that a batch does not name is not touched."""

    def __init__(self, optimizer: Optimizer, rows: npt.NDArray[np.float32]) -> None:
        self.o: Any = optimizer
        self.w = rows.astype(np.float64)
        start = getattr(optimizer, "start", 0.0)
        self.a, self.b = np.full_like(self.w, start), np.zeros_like(self.w)
        self.steps = np.zeros(len(rows), np.int64)

    def step(self, ids: npt.NDArray[np.int64], gradients: npt.NDArray[np.float32], rate: float) -> None:
        for i in np.unique(ids):
            self._row(i, gradients[ids == i].sum(axis=0, dtype=np.float64), rate)

    def _row(self, i: int, g: npt.NDArray[np.float64], rate: float) -> None:
        o, w, a, b = self.o, self.w[i], self.a[i], self.b[i]
        if o.clip_norm:
            g = g * min(1, o.clip_norm / np.linalg.norm(g))
        if o.clip_value:
            g = np.clip(g, -o.clip_value, o.clip_value)
        w -= w * (o.weight_decay or 0) * rate
        self.steps[i] += 1
        match o:
            case SGD():
                w -= rate * g
            case Momentum():
                a[:] = o.momentum * a - rate * g
                w += o.momentum * a - rate * g if o.nesterov else a
            case Adagrad():
                a += g * g
                w -= rate * g / np.sqrt(a + o.epsilon)
            case Adam():
                a += (1 - o.beta_1) * (g - a)
                b += (1 - o.beta_2) * (g * g - b)
                m, v = a / (1 - o.beta_1 ** self.steps[i]), b / (1 - o.beta_2 ** self.steps[i])
                # epsilon is that of the paper's second form, as in Keras: it stands beside the uncorrected root
                w -= rate * m / (np.sqrt(v) + o.epsilon / np.sqrt(1 - o.beta_2 ** self.steps[i]))
            case FTRL():
                z, n = b, a + g * g
                z += g + 2 * o.shrinkage * w - (np.sqrt(n) - np.sqrt(a)) / rate * w
                w[:] = (np.clip(z, -o.l1, o.l1) - z) / (np.sqrt(n) / rate + 2 * o.l2 + o.beta / rate)
                a[:] = n


RULES = [
    SGD(0.3),
    Momentum(0.05),
    Momentum(0.05, nesterov=True),
    Adagrad(0.1),
    Adam(0.02),
    FTRL(0.3, l1=0.01, l2=0.01, shrinkage=0.01, beta=0.1),
]


@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.1, "clip_norm": 0.05}, {"clip_value": 0.01}], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.rule)
def test_a_hundred_lazy_steps_on_a_schedule_equal_numpy(rule: Optimizer, more: dict[str, float]) -> None:
    rng = np.random.default_rng(5)
    optimizer = replace(rule, **more)
    table = Table(DIM, optimizer=optimizer, initializer=Uniform(0.3))
    reference = Reference(optimizer, table.lookup(np.arange(VOCABULARY)).numpy())
    schedule = keras.schedules.CosineDecay(optimizer.learning_rate, 120)

    @tf.function
    def step(ids: tf.Tensor, gradients: tf.Tensor, number: tf.Tensor) -> None:
        table.apply(ids, gradients, schedule(number))

    for number in range(100):
        ids = rng.choice(VOCABULARY, 24)  # repeats, and a third of the rows
        gradients = (rng.normal(size=(24, DIM)) / 10).astype(np.float32)
        step(ids, gradients, tf.constant(number))
        reference.step(ids, gradients, float(schedule(number)))
    np.testing.assert_allclose(rows_of(table), reference.w, rtol=2e-4, atol=2e-5)


def test_segments_of_a_row_learn_each_by_its_own() -> None:
    rng = np.random.default_rng(6)
    segments = [
        Segment(1, FTRL(0.2, l1=0.01), Zeros()),
        Segment(3, Adagrad(0.1), Normal(0.1)),
        Segment(2, SGD(0.3), Constant(0.5)),
        Segment(7, Adam(0.01, clip_norm=0.1), Uniform(0.1)),
    ]
    table = Table(segments, "user")
    assert (table.dim, table.slot_floats) == (13, 2 + 3 + 0 + 15)
    start = table.lookup(np.arange(VOCABULARY)).numpy()
    assert not start[:, 0].any() and (start[:, 4:6] == 0.5).all() and len(np.unique(start[:, 1])) == VOCABULARY
    edges = np.cumsum([0, *(s.dim for s in segments)])
    parts = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    references = [Reference(s.optimizer, start[:, part]) for s, part in zip(segments, parts, strict=True)]
    for number in range(100):
        ids = rng.choice(VOCABULARY, 40)
        gradients = (rng.normal(size=(40, 13)) / 10).astype(np.float32)
        rates = [s.optimizer.learning_rate / (1 + number) for s in segments]  # one a segment
        assert int(table.apply(ids, gradients, tf.constant(rates))) == len(np.unique(ids))
        for reference, part, rate in zip(references, parts, rates, strict=True):
            reference.step(ids, gradients[:, part], rate)
    rows = rows_of(table)
    for reference, part in zip(references, parts, strict=True):
        np.testing.assert_allclose(rows[:, part], reference.w, rtol=2e-4, atol=2e-5)
    slots = dict(zip(*(x.numpy() for x in table.export_since(0)[::2]), strict=True))
    counts = {key: row[-1] for key, row in slots.items() if key != "ticks"}
    assert [counts[i] for i in range(VOCABULARY)] == references[3].steps.tolist()  # Adam's last slot


def test_l1_makes_weights_exactly_zero() -> None:
    table = Table(4, optimizer=FTRL(0.1, l1=1.0), initializer=Zeros())
    table.lookup([1])
    table.apply([1], [[0.5, -0.5, 3.0, 0.0]])
    assert (table.find([1]).numpy() != 0).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_no_numbers_are_refused_or_read_as_zero(bad: float) -> None:
    gradients = np.ones((3, 4), np.float32)
    gradients[1, 2] = bad
    refusing = Table(4, "video", optimizer=Adam())
    zeroing = Table(4, "video", optimizer=Adam(), nonfinite="zero")
    before = [x.numpy().tobytes() for x in (refusing.lookup([1, 2, 3]), *refusing.export_since(0))]
    for step in (refusing.apply, tf.function(refusing.apply)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="table video: gradients hold NaN or Inf, allowed are"):
            step([1, 2, 3], gradients)
    assert [x.numpy().tobytes() for x in (refusing.find([1, 2, 3]), *refusing.export_since(0))] == before
    zeroing.lookup([1, 2, 3])
    zeroing.apply([1, 2, 3], gradients)
    refusing.apply([1, 2, 3], np.nan_to_num(gradients, nan=0, posinf=0, neginf=0))
    np.testing.assert_array_equal(zeroing.find([1, 2, 3]), refusing.find([1, 2, 3]))


def test_wrong_settings_are_named() -> None:
    wrong = {
        "SGD: learning_rate is -1, allowed is a number > 0": lambda: SGD(-1),
        "Adam: learning_rate is 0, allowed is a number > 0": lambda: Adam(0),
        "Adam: beta_2 is 1, allowed is 0 <= beta_2 < 1": lambda: Adam(beta_2=1),
        "Adam: epsilon is 0, allowed is a number > 0": lambda: Adam(epsilon=0),
        "Momentum: momentum is nan, allowed is a number >= 0": lambda: Momentum(momentum=np.nan),
        "Adagrad: start and epsilon are 0": lambda: Adagrad(start=0, epsilon=0),
        "FTRL: start, beta and l2 are 0": lambda: FTRL(start=0),
        "SGD: clip_norm is 0, allowed is a number > 0": lambda: SGD(clip_norm=0),
        "clip_value and clip_norm are both set, allowed is one of them": lambda: SGD(clip_value=1, clip_norm=1),
        "SGD: weight_decay is -0.1, allowed is a number >= 0": lambda: SGD(weight_decay=-0.1),
    }
    for message, make in wrong.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            make()
    table = Table(2, "t", optimizer=FTRL())
    with pytest.raises(tf.errors.InvalidArgumentError, match="table t: learning_rates holds 0, allowed is .* for FTRL"):
        table.apply([1], [[1.0, 1.0]], 0.0)
