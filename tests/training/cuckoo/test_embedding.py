"""The table under TensorFlow's own ways: Keras' fit, a plain tape, Checkpoint, SavedModel, two models in a process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from tests.support import PROJECT
from training.cuckoo import FTRL, Adagrad, Adam, Embedding, Normal, Segment, Table, Zeros, library

VOCABULARY, DIM, LENGTH = 50, 6, 3
keras = tf.keras


def a_model(rows: Any, seed: int = 1) -> Any:
    """[n, LENGTH] ids -> one number; `rows` embeds."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((LENGTH,), dtype=tf.int64),
            rows,
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(1),
        ]
    )


class Dense(keras.layers.Layer):  # type: ignore[misc]
    """Keras' Embedding whose gradient is dense: of IndexedSlices Keras' Adagrad squares the parts of a repeated id."""

    def __init__(self, start: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self.start = start

    def build(self, shape: Any) -> None:
        self.matrix = self.add_weight(name="matrix", shape=self.start.shape, initializer="zeros")
        self.matrix.assign(self.start)

    def call(self, ids: Any) -> Any:
        return tf.linalg.matmul(tf.one_hot(ids, len(self.start)), tf.convert_to_tensor(self.matrix))


def data(n: int = 480) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    return rng.zipf(1.4, (n, LENGTH)) % VOCABULARY, rng.normal(size=(n, 1)).astype(np.float32)


def test_fit_equals_a_dense_embedding_of_the_same_start() -> None:
    ids, labels = data()
    table = Table(DIM, "items", optimizer=Adagrad(0.05), initializer=Normal(0.3))
    start = table.lookup(np.arange(VOCABULARY)).numpy()
    theirs_rows = Dense(start)
    ours, theirs = a_model(Embedding(table)), a_model(theirs_rows)
    for model in (ours, theirs):
        model.compile(optimizer=keras.optimizers.Adagrad(0.05), loss="mse")
    losses = [
        m.fit(ids, labels, batch_size=32, epochs=4, shuffle=False, verbose=0).history["loss"] for m in (ours, theirs)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert losses[0][-1] < losses[0][0] - 0.02
    rows = table.find(np.arange(VOCABULARY)).numpy()
    np.testing.assert_allclose(rows, theirs_rows.matrix.numpy(), atol=2e-5)
    assert np.abs(rows - start).max() > 0.05
    np.testing.assert_allclose(ours.predict(ids, verbose=0), theirs.predict(ids, verbose=0), atol=2e-4)
    assert int(ours.layers[0].steps.numpy()) == 4 * 15


def test_a_tape_of_ones_own_trains_eagerly_and_in_a_function_alike() -> None:
    found = []
    for how in (lambda f: f, tf.function):
        table = Table([Segment(1, FTRL(0.1), Zeros()), Segment(3, Adam(0.01))], "items")
        layer = Embedding(table, keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5))
        layer.build((None,))

        def step(ids: Any, layer: Embedding = layer) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((layer(ids, training=True) - 1.0) ** 2)
            (gradient,) = tape.gradient(loss, layer.trainable_variables)
            return loss, gradient

        run = how(step)
        for _ in range(20):
            loss, gradient = run(tf.constant([[5, 6], [5, -1]], tf.int64))
            assert float(gradient) == 0
        found.append((float(loss), table.find([5, 6, -1]).numpy()))
        before = table.find([5, 6, 7]).numpy()
        assert layer(tf.constant([5, 6, 7], tf.int64)).numpy().tolist() == before.tolist()
        layer.trainable = False
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([5, 7], tf.int64), training=True))
        assert tape.gradient(loss, layer.anchor) is None
        np.testing.assert_array_equal(table.find([5, 6, 7]), before)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)
    assert found[0][0] < 6.0  # of 12 where it began


def test_the_gradient_of_watched_rows_is_the_users() -> None:
    table = Table(2, "t")
    with tf.GradientTape() as tape:
        rows = table.lookup([1, 2, 1])
        tape.watch(rows)
        loss = tf.reduce_sum(rows * [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert tape.gradient(loss, rows).numpy().tolist() == [[1, 2], [3, 4], [5, 6]]


def same(a: Table, b: Table) -> None:
    assert int(a.tick()) == int(b.tick())
    left, right = ([x.numpy() for x in t.export_since(0)] for t in (a, b))
    for x, y in zip(left, right, strict=True):
        np.testing.assert_array_equal(x[np.argsort(left[0])], y[np.argsort(right[0])])


def test_a_checkpoint_brings_back_rows_slots_and_ticks(tmp_path: Path) -> None:
    ids, labels = data()

    def fresh() -> tuple[Any, Table]:
        table = Table(DIM, "items", optimizer=Adam(0.01), initializer=Normal(0.3))
        model = a_model(Embedding(table))
        model.compile(optimizer="adam", loss="mse")
        return model, table

    model, table = fresh()
    table.set_tick(5)
    model.fit(ids, labels, batch_size=32, verbose=0, shuffle=False)
    table.set_tick(9)
    written = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    scores = model.predict(ids, verbose=0)
    again, restored = fresh()
    restored.lookup([10**6])  # not in the checkpoint: it goes
    tf.train.Checkpoint(model=again).read(written).assert_existing_objects_matched()
    same(restored, table)
    np.testing.assert_array_equal(again.predict(ids, verbose=0), scores)
    for m in (model, again):
        m.fit(ids, labels, batch_size=32, verbose=0, shuffle=False)
    same(restored, table)  # it trains on to the same bits: nothing of the state was left behind


CHILD = """
import sys
import numpy as np
import tensorflow as tf
from training.cuckoo import library
library.ops()
loaded = [tf.saved_model.load(sys.argv[1]) for _ in range(2)]
ids = np.load(sys.argv[2])
scores = [m.serve(tf.constant(ids)).numpy() for m in loaded]
assert (scores[0] == scores[1]).all()
rows = loaded[0].rows(tf.constant(ids.ravel())).numpy()
tables = [m.table.resource_handle for m in loaded]
print(library.ops().cuckoo_remove(tables[0], [int(ids[0, 0])]).numpy())
assert (loaded[0].serve(tf.constant(ids)).numpy() != scores[0]).any()
assert (loaded[1].serve(tf.constant(ids)).numpy() == scores[1]).all()  # a table of its own
np.savez(sys.argv[3], scores=scores[0], rows=rows)
"""


def test_a_saved_model_scores_the_same_in_a_fresh_process_and_without_the_library_says_so(tmp_path: Path) -> None:
    ids, labels = data()
    table = Table(DIM, "items", optimizer=Adagrad(0.05), initializer=Normal(0.3))
    model = a_model(Embedding(table))
    model.compile(optimizer="adam", loss="mse")
    model.fit(ids[:400], labels[:400], batch_size=32, verbose=0)
    ids[400:] += 1000  # ids without a row
    module = tf.Module()
    module.model, module.table = model, table
    module.serve = tf.function(
        lambda x: model(x, training=False), input_signature=[tf.TensorSpec([None, LENGTH], tf.int64)]
    )
    module.rows = tf.function(table.find, input_signature=[tf.TensorSpec([None], tf.int64)])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    np.save(tmp_path / "ids.npy", ids)
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(tmp_path / "saved"),
        str(tmp_path / "ids.npy"),
        str(tmp_path / "scores.npz"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    loaded = np.load(tmp_path / "scores.npz")
    np.testing.assert_array_equal(loaded["rows"], table.find(ids.ravel()))
    # the rows to the bit; the dense layers' last bit is oneDNN's, which does not promise it
    np.testing.assert_allclose(loaded["scores"], module.serve(tf.constant(ids)), rtol=1e-5, atol=1e-7)
    command[2] = CHILD.replace("library.ops()\n", "", 1)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0 and "Op type not registered 'Cuckoo" in run.stderr


def test_two_models_in_one_process_do_not_touch_each_other() -> None:
    ids, labels = data()
    alone: list[npt.NDArray[np.float32]] = []
    for names in (["a"], ["b"], ["a", "b"]):
        tables = {n: Table(4 if n == "a" else 9, n, optimizer=Adagrad(0.1)) for n in names}
        models = {n: a_model(Embedding(t)) for n, t in tables.items()}
        for model in models.values():
            model.compile(optimizer="sgd", loss="mse")
        for _ in range(2):
            for model in models.values():
                model.fit(ids, labels, batch_size=64, verbose=0, shuffle=False)
        alone += [t.find(np.arange(VOCABULARY)).numpy() for t in tables.values()]
    np.testing.assert_array_equal(alone[0], alone[2])
    np.testing.assert_array_equal(alone[1], alone[3])


HUNGRY = """
import resource
import numpy as np, tensorflow as tf
from training.cuckoo import Table, Zeros
table = Table(1024, "big", initializer=Zeros())
kept = table.lookup(np.arange(1000)).numpy()
room = np.ones(64 << 20, np.uint8)  # for TensorFlow's own tensors, once the table has taken all the rest
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 600 * 2**20,) * 2)
try:
    for at in range(1000, 10**7, 1000):
        table.lookup(np.arange(at, at + 1000))
except tf.errors.ResourceExhaustedError as e:
    print(e.message)
del room
size = table.stats()["size"]
assert 1000 < size < 10**6, size
assert (table.find(np.arange(1000)).numpy() == kept).all()
assert table.remove(np.arange(500)).numpy().all() and table.stats()["size"] == size - 500
table.lookup(np.arange(500))  # freed rows are used again: it takes no new memory
assert table.stats()["size"] == size
"""


def test_memory_that_ends_is_resource_exhausted_and_the_table_is_whole() -> None:
    """In a process of its own whose memory is bounded: the kernel, not a stand-in, says no."""
    run = subprocess.run(
        [sys.executable, "-c", HUNGRY],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "table big: no memory for" in run.stdout and "rows" in run.stdout


def test_a_library_built_for_another_tensorflow_is_named(tmp_path: Path) -> None:
    """The real file, its mark of another version: an ImportError before it is loaded, not a crash."""
    content = library.PATH.read_bytes()
    mark = f"CUCKOO_BUILT_FOR_TENSORFLOW={tf.__version__};".encode()
    assert content.count(mark) == 1
    other = tmp_path / "_cuckoo.so"
    other.write_bytes(content.replace(mark, mark.replace(tf.__version__[:1].encode(), b"9", 1)))
    with pytest.raises(ImportError, match=f"was built for TensorFlow 9.*, this is {tf.__version__}: run `make setup`"):
        library.check(other, tf.__version__)
