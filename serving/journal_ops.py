"""The reader of `assets/journal.bin` inside the served graph (format: docs/delta.md and serving/journal.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from serving import journal

Check = tuple[tf.Tensor, str]
TableTensors = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
"""removed int64[m], keys int64[n], rows float32[n, dim]: in the order in which they are applied."""

_BODY = journal.HEADER_WORDS + journal.LINEAGE_BYTES // 8
"""Where the counts begin."""


class Header(NamedTuple):
    """What stands before the keys: int64 scalars, counts [tables, 2], and what must hold before the rest is read."""

    start: tf.Tensor
    to: tf.Tensor
    learned_until_ms: tf.Tensor
    counts: tf.Tensor
    checks: list[Check]


def header(words: tf.Tensor, lineage: str, dims: Mapping[str, int], dense_floats: int) -> Header:
    """The head of a journal of int64 `words`, which may be anything: short, foreign or flipped."""
    top = _BODY + 2 * len(dims)
    head = tf.concat([words[:top], tf.zeros([top], tf.int64)], 0)[:top]  # so that a short file is refused, by name
    counts = tf.reshape(head[_BODY:], [-1, 2])
    floats = tf.reduce_sum(counts[:, 0] * tf.constant(list(dims.values()), tf.int64)) + dense_floats
    size = tf.size(words, tf.int64)
    name = np.frombuffer(lineage.encode().ljust(journal.LINEAGE_BYTES, b"\0"), "<i8")
    odd = 2 * tf.range(size) + 1
    place = tf.one_hot(journal.CHECK, tf.size(words), dtype=tf.int64)
    total = tf.reduce_sum(words * odd * (1 - place))
    whole = [
        tf.equal(head[0], tf.constant(journal.MAGIC, tf.int64)),
        tf.equal(head[1], journal.FORMAT),
        tf.equal(head[journal.BODY_WORDS] + journal.HEADER_WORDS, size),
        tf.equal(head[journal.CHECK], total),
        tf.reduce_all(counts >= 0),
        tf.equal(top + tf.reduce_sum(counts) + (floats + 1) // 2, size),
    ]
    mine = [tf.reduce_all(head[journal.HEADER_WORDS : _BODY] == name), head[journal.LINEAGE_LENGTH] == len(lineage)]
    return Header(
        head[journal.START], head[journal.TO], head[journal.LEARNED_UNTIL], counts,
        [(tf.reduce_all(whole), "the journal is not whole"), (tf.reduce_all(mine), "a journal of another lineage")],
    )  # fmt: skip


def body(
    words: tf.Tensor, head: Header, dims: Mapping[str, int], shapes: Mapping[str, tf.TensorShape]
) -> tuple[dict[str, TableTensors], dict[str, tf.Tensor]]:
    """Table -> its changes, and dense weight -> value, of a journal whose checks hold."""
    ids, rest = tf.transpose(head.counts), words[_BODY + 2 * len(dims) :]
    listed = tf.reduce_sum(ids)
    split = tf.split(rest[:listed], tf.reshape(ids, [-1]), num=2 * len(dims))
    floats = tf.reshape(tf.bitcast(rest[listed:], tf.float32), [-1])
    changes: dict[str, TableTensors] = {}
    at = tf.zeros([], tf.int64)
    for i, (name, dim) in enumerate(dims.items()):
        size = head.counts[i, 0] * dim
        changes[name] = (split[len(dims) + i], split[i], tf.reshape(floats[at : at + size], [-1, dim]))
        at += size
    dense = {}
    for name in sorted(shapes):
        size = shapes[name].num_elements()
        dense[name] = tf.reshape(floats[at : at + size], shapes[name])
        at += size
    return changes, dense
