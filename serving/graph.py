"""The served model: a tf.Module whose signatures are the calls of docs/delta.md.

It uses only ops of TensorFlow, since the official tensorflow/serving image cannot load others. None is newer than the
TensorFlow before ours, which that image has (tests/serving/test_export_previous_tf.py runs every signature there).

A table is a DenseHashTable. Each call on it is atomic, and it has the lowest tail latency beside a writer. It gets its
size at the export: to grow, it is copied under its one lock, and all readers wait.

A write does, in this order: checks, inserts, removes, seq. Each step has a control dependency on the one before, else
TensorFlow could move seq although an insert fails. A refusal is an Assert with a constant message:
`tf.debugging.assert_equal` would print the token that it compares.

The no-op form of a write is a branch of its own. If it wrote the current values, it could meet a delta, and undo it.
TensorFlow puts both branches into one graph, so the warm-up prepares the other branch, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from serving import journal_ops
from serving.asset_paths import AssetPaths
from serving.signatures import NO_OP, UNUSED, WRITES, input_name
from streaming.declaration import INT64_MIN
from training.models.model import Context, Model, Signature
from training.models.pooling import pooled

EMPTY_KEY, DELETED_KEY = INT64_MIN, INT64_MIN + 1
"""The sentinels of a DenseHashTable. One of them fails a whole lookup, so ids are masked before it."""
GONE = -0.0
"""Each number of a removed row. A model reads it as 0, as for an unknown id. No trained row has only these bits.

DenseHashTable's `remove` cannot be used. It frees a bucket, and a later insert of another key that exists may take
that bucket; then the table holds this key twice (TF 2.21; tests/serving/test_dense_hash_table.py shows it).
"""
MAX_LOAD = 0.8  # DenseHashTable's default: a table with more rows grows, under its lock

Tensors = dict[str, tf.Tensor]
Specs = dict[str, tf.TensorSpec]
Changes = dict[str, journal_ops.TableTensors]

NO_INPUTS: Specs = {UNUSED: tf.TensorSpec([], tf.int64, UNUSED)}


class Content(NamedTuple):
    """The first content of a version: table -> (int64 keys[n], float32 rows[n, dim]). The model has the dense weights.

    `dense_seq` is the seq of the manifest that they are from.
    """

    lineage: str
    seq: int
    learned_until_ms: int
    tables: Mapping[str, tuple[np.ndarray, np.ndarray]]
    dense_seq: int


def buckets(rows: int, head_room: float) -> int:
    """A DenseHashTable's size (a power of two) that holds `rows` x `head_room` rows without growing."""
    # At least some chunks fit: a table grows if it cannot hold all rows of a call as new ones.
    return 1 << max(14, int(np.ceil(np.log2(max(rows, 1) * head_room / MAX_LOAD))))


def row_digest(keys: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """The sum of farmhash64(key bytes + row bytes) modulo 2^64: the order is irrelevant, a flipped bit changes it."""
    row_bytes = tf.reshape(tf.bitcast(rows, tf.uint8), [-1, rows.shape[1] * 4])
    hashes = tf.fingerprint(tf.concat([tf.bitcast(keys, tf.uint8), row_bytes], 1))
    return tf.reduce_sum(tf.bitcast(hashes, tf.int64))


def dense_digest(weights: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The same sum over name + value bytes of each dense weight."""
    total = tf.zeros([], tf.int64)
    for name, value in weights.items():
        label = tf.constant(np.frombuffer(name.encode(), np.uint8))
        data = tf.concat([label, tf.reshape(tf.bitcast(value, tf.uint8), [-1])], 0)
        total += tf.bitcast(tf.fingerprint(data[tf.newaxis]), tf.int64)[0]
    return total


def refuse_unless(checks: list[tuple[tf.Tensor, str]]) -> list[tf.Operation]:
    """Asserts (condition, reason) in this order, so that the error has the first reason. The messages are constant."""
    asserts: list[tf.Operation] = []
    for condition, reason in checks:
        with tf.control_dependencies(asserts):
            asserts = [tf.raw_ops.Assert(condition=condition, data=[tf.constant(f"refused: {reason}")])]
    return asserts


def is_id(keys: tf.Tensor) -> tf.Tensor:
    return keys > tf.constant(DELETED_KEY, tf.int64)


def lists_of(padded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The ids of lists int64[n, L] without their padding by EMPTY_KEY, one list after the other; their row splits."""
    is_listed = padded != EMPTY_KEY
    lengths = tf.reduce_sum(tf.cast(is_listed, tf.int64), 1)
    listed = tf.gather(tf.reshape(padded, [-1]), tf.where(tf.reshape(is_listed, [-1]))[:, 0])  # boolean_mask has 12 ops
    return listed, tf.concat([tf.zeros([1], tf.int64), tf.cumsum(lengths)], 0)


def _shaped(call: Callable[..., Tensors], specs: Specs) -> tuple[Callable[..., Tensors], Specs]:
    """The call, after a check that each input has its signature's shape. TensorFlow Serving does not compare them."""

    def run(**x: tf.Tensor) -> Tensors:
        inputs = {name: tf.ensure_shape(value, specs[name].shape) for name, value in x.items()}
        with tf.control_dependencies(list(inputs.values())):
            return call(**inputs)

    return run, specs


def _function(call: Callable[..., Tensors], specs: Specs) -> Any:
    """A call as tf.saved_model.save takes it. The default of an input is that of the Python function's parameter."""
    if specs is not NO_INPUTS:
        return tf.function(call, autograph=False).get_concrete_function(**specs)
    zero = tf.constant(0, tf.int64)
    return tf.function(lambda unused=zero: call(), autograph=False, input_signature=[NO_INPUTS[UNUSED]])


class Served(tf.Module):  # type: ignore[misc]
    """`model` with `content`. A table holds `head_room` times its rows before it must grow.

    `assets` is a folder with `journal.bin` and `token`. None makes the frozen copy, which has no write signatures.
    """

    def __init__(self, model: Model, content: Content, assets: Path | None, head_room: float = 4.0) -> None:
        super().__init__()
        # A function, since tf.Module saves the layers of an attribute, and the weights are saved already.
        self._model: Callable[[], Model] = lambda: model
        self._declaration, self._lineage, self._dims = model.declaration, content.lineage, dict(model.dims)
        self.weights = {name: model.dense[name].variable for name in sorted(model.dense)}
        self.tables: dict[str, Any] = {}
        self.capacity: dict[str, int] = {}
        for name, dim in self._dims.items():
            keys, rows = content.tables[name]
            size = buckets(len(keys), head_room)
            self.capacity[name] = int(size * MAX_LOAD)
            table = tf.lookup.experimental.DenseHashTable(
                tf.int64, tf.float32, tf.zeros([dim]), EMPTY_KEY, DELETED_KEY, size, name=f"table_{name}"
            )
            table.insert(tf.constant(keys, tf.int64), tf.constant(rows, tf.float32))
            self.tables[name] = table
        self.seq = tf.Variable(content.seq, dtype=tf.int64, trainable=False)
        self.dense_seq = tf.Variable(content.dense_seq, dtype=tf.int64, trainable=False)
        self.chunk = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.learned_until_ms = tf.Variable(content.learned_until_ms, dtype=tf.int64, trainable=False)
        self.journal_applied = tf.Variable(False, trainable=False)
        # The assets must be attributes of the module: those of a resource alone are not saved.
        self.assets = [tf.saved_model.Asset(str(assets / f)) for f in ("journal.bin", "token")] if assets else []
        self.paths = AssetPaths(self.assets) if assets else None

    # -- reading ---------------------------------------------------------------------------------------------------

    def predict(self, **inputs: tf.Tensor) -> Tensors:
        """Features of n (user, item) pairs -> the score of each task, and the seq of the delta that is served: [n]."""
        model, n = self._model(), tf.shape(inputs[self._declaration.served[0].name])[0]
        seq = self.seq.read_value()
        with tf.control_dependencies([seq]):  # before the lookups: rows may be newer than seq, never older
            rows = self._feature_rows(inputs)
        numbers = [inputs[name] for name in model.number_features]
        outputs = model.outputs(rows, tf.stack(numbers, 1) if numbers else tf.zeros([n, 0]), Context(n))
        return model.scores(outputs) | {"seq": tf.fill([n], seq)}

    def _feature_rows(self, inputs: Tensors) -> Tensors:
        """Feature -> float32[n, dim]. One lookup for each table: all features of a table see the same state of it."""
        rows: Tensors = {}
        ids, splits = dict(inputs), {}
        dims: dict[str, int] = {}
        served = self._declaration.served
        for f in served:
            if f.kind == "ids":
                ids[f.name], splits[f.name] = lists_of(inputs[f.name])
        for name in dict.fromkeys(f.table for f in served if f.table):
            features = [f.name for f in served if f.table == name]
            parts = [ids[feature] for feature in features]
            flat = self._joined(name, tf.concat(parts, 0))
            rows |= dict(zip(features, tf.split(flat, [tf.size(p) for p in parts]), strict=True))
            dims |= dict.fromkeys(features, flat.shape[1])
        return {n: tf.ensure_shape(r, [None, dims[n]]) for n, r in pooled(rows, splits).items()}

    def _joined(self, table: str, ids: tf.Tensor) -> tf.Tensor:
        """The rows float32[n, dim] of ids of a declared table, as the model takes them.

        A write inserts a long row before it removes the short one. So a read in the opposite order finds one of both.
        """
        model = self._model()
        rows: Tensors = {}
        for name in model.stored[table]:
            with tf.control_dependencies(list(rows.values())):
                rows[name] = self._rows(name, ids)
        return model.joined(table, rows)

    def _rows(self, table: str, ids: tf.Tensor) -> tf.Tensor:
        """The rows float32[n, dim] of ids int64[n]; zeros for an unknown or a reserved id."""
        return tf.where(is_id(ids)[:, tf.newaxis], self.tables[table].lookup(tf.where(is_id(ids), ids, 0)), 0.0)

    def _model_call(self, signature: Signature, **inputs: tf.Tensor) -> Tensors:
        """Calls a signature that the model itself defines."""
        return signature.call(inputs, self._rows)

    def status(self) -> Tensors:
        """The delta that is served, in O(1). `<table>_size` counts removed keys, too; beyond `_capacity` it grows."""
        sizes = {f"{name}_size": table.size() for name, table in self.tables.items()}
        capacities = {f"{name}_capacity": tf.constant(rows, tf.int64) for name, rows in self.capacity.items()}
        times = {"seq": self.seq.read_value(), "learned_until_ms": self.learned_until_ms.read_value()}
        return sizes | capacities | times | {"lineage": tf.constant(self._lineage)}

    def digest(self) -> Tensors:
        """The manifest's `digest`, computed from the served tables and weights."""
        sums: Tensors = {}
        for name, table in self.tables.items():
            keys, rows = table.export()  # every bucket, also the empty ones
            keys, rows = tf.reshape(keys, [-1]), tf.reshape(rows, [-1, self._dims[name]])
            removed = tf.reduce_all(tf.equal(tf.bitcast(rows, tf.int32), tf.int32.min), 1)  # the bits of -0.0
            used = tf.where(tf.logical_and(is_id(keys), tf.logical_not(removed)))[:, 0]
            sums[name] = row_digest(tf.gather(keys, used), tf.gather(rows, used))
        return sums | {"dense": dense_digest({n: w.read_value() for n, w in self.weights.items()})}

    # -- writing ---------------------------------------------------------------------------------------------------

    def _checks(self, x: Tensors, current: tf.Tensor) -> list[tuple[tf.Tensor, str]]:
        """The checks of the inputs that every write has."""
        token = tf.strings.strip(self.paths.read(1))  # type: ignore[union-attr]
        return [
            (tf.logical_and(tf.strings.length(token) > 0, x["token"] == token), "not this replica's write token"),
            (x["lineage"] == self._lineage, "another lineage is served here"),
            (x["seq"] == current + 1, "seq is not the served one + 1"),
        ]

    def apply_dense(self, **x: tf.Tensor) -> Tensors:
        """Writes all dense weights of delta `seq`. It must be called before the delta's last chunk."""
        return {"dense_seq": tf.cond(x["seq"] == NO_OP, self.dense_seq.read_value, lambda: self._write_dense(x))}

    def _write_dense(self, x: Tensors) -> tf.Tensor:
        values = {name: x[input_name(name)] for name in self.weights}
        checks = self._checks(x, self.seq.read_value())
        checks += [(tf.reduce_all(tf.math.is_finite(v)), "a dense weight is not finite") for v in values.values()]
        with tf.control_dependencies(refuse_unless(checks)):
            assigns = [self.weights[name].assign(value, read_value=False) for name, value in values.items()]
        with tf.control_dependencies([op for op in assigns if op is not None]):
            return self.dense_seq.assign(x["seq"])

    def apply_delta(self, **x: tf.Tensor) -> Tensors:
        """Writes chunk `chunk` of the `chunks` of delta `seq`."""
        changes = {name: (x[f"{name}_removed"], x[f"{name}_keys"], x[f"{name}_rows"]) for name in self.tables}
        size = sum(tf.size(part) for parts in changes.values() for part in parts)
        seq, chunk = tf.cond(
            tf.logical_and(x["seq"] == NO_OP, tf.equal(size, 0)),
            lambda: (self.seq.read_value(), self.chunk.read_value()),
            lambda: self._write_chunk(x, changes),
        )
        return {"seq": seq, "chunk": chunk}

    def _write_chunk(self, x: Tensors, changes: Changes) -> tuple[tf.Tensor, tf.Tensor]:
        current, chunk = self.seq.read_value(), x["chunk"]
        last = tf.equal(chunk + 1, x["chunks"])
        checks = self._checks(x, current)
        checks += [
            (tf.logical_and(chunk >= 0, chunk < x["chunks"]), "chunk is not one of chunks"),
            (tf.logical_or(tf.equal(chunk, 0), chunk == self.chunk.read_value()), "chunk is neither the next nor 0"),
            (
                tf.logical_or(tf.logical_not(last), self.dense_seq.read_value() == x["dense_seq"]),
                "dense weights come first",
            ),
        ]
        with tf.control_dependencies(self._write(checks, changes)):
            assigns = [
                self.chunk.assign(tf.where(last, tf.zeros_like(chunk), chunk + 1)),
                self.learned_until_ms.assign(tf.where(last, x["learned_until_ms"], self.learned_until_ms.read_value())),
            ]
        with tf.control_dependencies(assigns):
            return self.seq.assign(tf.where(last, x["seq"], current)), tf.identity(assigns[0])

    def _write(self, checks: list[tuple[tf.Tensor, str]], changes: Changes) -> list[tf.Operation]:
        """Checks all tables, then inserts, then removes: a call that is refused changes no table."""
        for name, (removed, keys, rows) in changes.items():
            checks += [
                (tf.equal(tf.shape(keys)[0], tf.shape(rows)[0]), f"{name}: not as many rows as keys"),
                (tf.reduce_all(is_id(keys)), f"{name}: a key is a reserved id"),
                (tf.reduce_all(is_id(removed)), f"{name}: a removed key is a reserved id"),
                (tf.reduce_all(tf.math.is_finite(rows)), f"{name}: a row is not finite"),
            ]
        with tf.control_dependencies(refuse_unless(checks)):
            inserts = [self.tables[name].insert(keys, rows) for name, (_, keys, rows) in changes.items()]
        with tf.control_dependencies(inserts):
            return [
                self.tables[name].insert(removed, tf.fill([tf.size(removed), self._dims[name]], GONE))
                for name, (removed, _, _) in changes.items()
            ]

    def apply_file(self) -> Tensors:
        """Applies `assets/journal.bin` of this version, as the warm-up does before the version is AVAILABLE.

        It does so once. Later calls change nothing, so that no call without a token can meet a delta that is applied.
        """
        return {"seq": tf.cond(self.journal_applied.read_value(), self.seq.read_value, self._apply_journal)}

    def _apply_journal(self) -> tf.Tensor:
        """Reads the file until it has nothing newer, since sync may add deltas while this one reads it."""
        start = (tf.constant(True), self.seq.read_value())
        _, seq = tf.while_loop(lambda newer, _: newer, self._read_journal, start, parallel_iterations=1)
        with tf.control_dependencies([seq]):
            applied = self.journal_applied.assign(True)
        with tf.control_dependencies([applied]):
            return tf.identity(seq)

    def _read_journal(self, _: tf.Tensor, seq: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Applies the records of the file that are newer than `seq`. Returns True if there was one, and the new seq."""
        words = journal_ops.words_of(self.paths.read(0))  # type: ignore[union-attr]

        def step(at: tf.Tensor, current: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            size, checks = journal_ops.size_of(words, at)
            checks += [(tf.logical_or(at > 0, size <= tf.size(words, tf.int64)), "the journal is not whole")]
            with tf.control_dependencies(refuse_unless(checks)):
                end = at + size
            whole = end <= tf.size(words, tf.int64)  # else a kill of sync cut it short, before the delta was applied
            return end, tf.cond(whole, lambda: self._apply_record(words[at:end], current), lambda: current)

        start = (tf.zeros([], tf.int64), seq)
        read, after = tf.while_loop(lambda at, _: journal_ops.has_header(words, at), step, start, parallel_iterations=1)
        with tf.control_dependencies(refuse_unless([(read > 0, "the journal is not whole")])):
            return after > seq, tf.identity(after)

    def _apply_record(self, words: tf.Tensor, current: tf.Tensor) -> tf.Tensor:
        """Applies one record that goes beyond `current`, and returns the seq after it."""
        floats = sum(w.shape.num_elements() for w in self.weights.values())
        head = journal_ops.header(words, self._lineage, self._dims, floats)
        checks = [*head.checks, (head.start <= current, "the journal begins after the served seq")]
        with tf.control_dependencies(refuse_unless(checks)):
            return tf.cond(head.to > current, lambda: self._write_record(words, head), lambda: current)

    def _write_record(self, words: tf.Tensor, head: journal_ops.Header) -> tf.Tensor:
        shapes = {name: w.shape for name, w in self.weights.items()}
        changes, dense = journal_ops.body(words, head, self._dims, shapes)
        finite = [(tf.reduce_all(tf.math.is_finite(v)), "a dense weight is not finite") for v in dense.values()]
        with tf.control_dependencies(self._write(finite, changes)):
            assigns = [self.weights[n].assign(v) for n, v in dense.items()]
            assigns += [self.dense_seq.assign(head.dense_seq), self.chunk.assign(tf.zeros([], tf.int64))]
            assigns += [self.learned_until_ms.assign(head.learned_until_ms)]
        with tf.control_dependencies(assigns):
            return self.seq.assign(head.to)

    # -- the calls -------------------------------------------------------------------------------------------------

    def signatures(self) -> dict[str, Any]:
        """Signature name -> function, for tf.saved_model.save."""
        return {name: _function(call, specs) for name, (call, specs) in self._calls().items()}

    def inputs(self) -> dict[str, Specs]:
        """Signature name -> its inputs."""
        return {name: specs for name, (_, specs) in self._calls().items()}

    def _calls(self) -> dict[str, tuple[Callable[..., Tensors], Specs]]:
        model, d = self._model(), self._declaration
        kinds = {"id": ([None], tf.int64), "ids": ([None, None], tf.int64), "number": ([None], tf.float32)}
        features = {f.name: tf.TensorSpec(*kinds[f.kind], f.name) for f in d.served}
        dtypes = {"lineage": tf.string, "seq": tf.int64, "token": tf.string}
        write = {n: tf.TensorSpec([], dtype, n) for n, dtype in dtypes.items()}
        rows = {n: tf.TensorSpec([], tf.int64, n) for n in ("chunk", "chunks", "learned_until_ms", "dense_seq")}
        for t, dim in self._dims.items():
            rows[f"{t}_keys"] = tf.TensorSpec([None], tf.int64, f"{t}_keys")
            rows[f"{t}_rows"] = tf.TensorSpec([None, dim], tf.float32, f"{t}_rows")
            rows[f"{t}_removed"] = tf.TensorSpec([None], tf.int64, f"{t}_removed")
        dense = {input_name(n): tf.TensorSpec(w.shape, tf.float32, input_name(n)) for n, w in self.weights.items()}
        clash = (set(dense) & set(write)) | ({"seq"} & set(d.tasks))
        if clash or len(dense) != len(self.weights):
            raise ValueError(f"declaration {d.name}: {sorted(clash) or sorted(dense)} are inputs or outputs of a call")
        calls: dict[str, tuple[Callable[..., Tensors], Specs]] = {
            "serving_default": (self.predict, features),
            "status": (self.status, NO_INPUTS), "digest": (self.digest, NO_INPUTS),
            "apply_dense": _shaped(self.apply_dense, write | dense),
            "apply_delta": _shaped(self.apply_delta, write | rows),
            "apply_file": (self.apply_file, NO_INPUTS),
        }  # fmt: skip
        for name, signature in model.signatures().items():
            if name in calls:
                raise ValueError(f"model {model.info}: signature {name} is reserved")
            calls[name] = (partial(self._model_call, signature), signature.inputs)
        return {name: call for name, call in calls.items() if self.paths is not None or name not in WRITES}
