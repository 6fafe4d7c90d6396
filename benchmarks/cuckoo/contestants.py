"""Makes the tables that are compared, filled with the same keys. Each verb of a table is a call that takes one batch.

`ours` is the cuckoo table, called by its Python methods. The others are called by their raw ops if they have some, so
that the time of their wrappers is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from benchmarks.cuckoo.ceiling import Ceiling
from benchmarks.cuckoo.streams import Ids, keys_of
from training.cuckoo import Adagrad, Table

RATE = 0.05
FILL = 65_536


class Batch(NamedTuple):
    """One batch in every form that a contestant takes: places and keys as arrays and tensors, rows, ticks."""

    ids: Ids
    places: Any
    keys: Any
    rows: Any
    ticks: Any

    @classmethod
    def of(cls, ids: Ids, dim: int) -> Batch:
        rows = np.random.default_rng(len(ids.keys)).normal(0, 0.01, (len(ids.keys), dim)).astype(np.float32)
        ones = np.ones(len(ids.keys), np.int64)
        return cls(ids, tf.constant(ids.places), tf.constant(ids.keys), tf.constant(rows), tf.constant(ones))


Verbs = dict[str, Callable[[Batch], Any]]


def cuckoo(dim: int, expected_rows: int | None = None, name: str = "benchmark") -> Table:
    """A table of rows of `dim` with Adagrad's slot."""
    size = {} if expected_rows is None else {"expected_rows": expected_rows}
    return Table(dim, name, optimizer=Adagrad(RATE), **size)


def all_keys(n: int, size: int = FILL) -> Iterator[Any]:
    """The keys of places 0 .. n - 1, int64 tensors of at most `size`."""
    for begin in range(0, n, size):
        yield tf.constant(keys_of(np.arange(begin, min(n, begin + size))))


def ours(n: int, dim: int) -> tuple[Table, dict[str, Verbs]]:
    table = cuckoo(dim, n)
    for keys in all_keys(n):
        table.lookup(keys)
    return table, {
        "find": {"ours": lambda b: table.find(b.keys)},
        "lookup": {"ours": lambda b: table.lookup(b.keys)},
        "apply": {"ours": lambda b: table.apply(b.keys, b.rows)},
        "import": {"ours": lambda b: table.import_rows(b.keys, b.rows, b.rows, b.ticks)},
    }


def ceilings(n: int, dim: int) -> tuple[Ceiling, dict[str, Verbs]]:
    """The ceilings of the table's own layout: a row is the weights and one slot."""
    ceiling = Ceiling(n, dim, 2 * dim)
    return ceiling, {
        "find": {
            "row_copy": lambda b: ceiling.row_copy(b.ids.places),
            "index_line": lambda b: ceiling.index_line(b.ids.keys),
        }
    }


def dense(n: int, dim: int) -> dict[str, Verbs]:
    """A variable of n rows: gather, TensorFlow's sparse Adagrad, and Keras' Adagrad on IndexedSlices."""
    weights = keras.Variable(tf.zeros([n, dim]), name="weights")
    optimizer = keras.optimizers.Adagrad(RATE)
    optimizer.build([weights])
    accumulators = next(v for v in optimizer.variables if v.shape == weights.shape)
    var, accumulator = weights.value.handle, accumulators.value.handle
    rate, epsilon = tf.constant(RATE), tf.constant(1e-7)

    def gather(b: Batch) -> Any:
        return tf.raw_ops.ResourceGather(resource=var, indices=b.places, dtype=tf.float32)

    def stock(b: Batch) -> Any:
        return tf.raw_ops.ResourceSparseApplyAdagradV2(
            var=var, accum=accumulator, lr=rate, epsilon=epsilon, grad=b.rows, indices=b.places
        )

    def by_keras(b: Batch) -> Any:
        return optimizer.apply([tf.IndexedSlices(b.rows, b.places, [n, dim])])

    return {"find": {"gather": gather}, "apply": {"stock": stock}, "apply once": {"keras": by_keras}}


def hash_table(n: int, dim: int, kind: str) -> dict[str, Verbs]:
    """TensorFlow's DenseHashTable (pre-sized) or MutableHashTable; weights only, they have no slots."""
    zeros = tf.zeros([dim])
    if kind == "DenseHashTable":
        buckets = 1 << (int(n / 0.75) - 1).bit_length()
        table = tf.lookup.experimental.DenseHashTable(
            tf.int64, tf.float32, zeros, empty_key=-1, deleted_key=-2, initial_num_buckets=buckets
        )
    else:
        table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, zeros)
    find, insert = tf.raw_ops.LookupTableFindV2, tf.raw_ops.LookupTableInsertV2
    handle = table.resource_handle
    rows = tf.zeros([FILL, dim])
    for keys in all_keys(n):
        insert(table_handle=handle, keys=keys, values=rows[: len(keys)])
    return {
        "find": {kind: lambda b: (table, find(table_handle=handle, keys=b.keys, default_value=zeros))[1]},
        "import": {kind: lambda b: insert(table_handle=handle, keys=b.keys, values=b.rows)},
    }
