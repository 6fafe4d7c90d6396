"""Reads `assets/journal.bin` inside the served graph (format: docs/delta.md and serving/journal.py).

The file may be damaged in any way: a record's checks must hold before its body is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from serving import journal

Check = tuple[tf.Tensor, str]
TableTensors = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
"""removed int64[m], keys int64[n], rows float32[n, dim], in the order in which they are applied."""

_COUNTS = journal.HEADER_WORDS + journal.LINEAGE_BYTES // 8
"""The word at which the counts begin."""


class Header(NamedTuple):
    """Everything before the keys: int64 scalars, counts [tables, 2], and the checks before the rest may be read."""

    start: tf.Tensor
    to: tf.Tensor
    learned_until_ms: tf.Tensor
    dense_seq: tf.Tensor
    counts: tf.Tensor
    checks: list[Check]


def words_of(data: tf.Tensor) -> tf.Tensor:
    """The file's bytes as int64 words, without an incomplete word at the end."""
    return tf.io.decode_raw(tf.strings.substr(data, 0, tf.strings.length(data) // 8 * 8), tf.int64)


def has_header(words: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """True if a whole header begins at word `at`."""
    return at + journal.HEADER_WORDS <= tf.size(words, tf.int64)


def size_of(words: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, list[Check]]:
    """The number of words of the record whose header begins at word `at`, and the check of that header."""
    head = words[at : at + journal.HEADER_WORDS]
    good = [
        tf.equal(head[0], tf.constant(journal.MAGIC, tf.int64)),
        tf.equal(head[1], journal.FORMAT),
        tf.equal(head[journal.HEADER_CHECK], _check(head[: journal.HEADER_CHECK])),
        head[journal.BODY_WORDS] >= 0,
    ]
    return head[journal.BODY_WORDS] + journal.HEADER_WORDS, [(tf.reduce_all(good), "the journal is not whole")]


def _check(words: tf.Tensor) -> tf.Tensor:
    odd = 2 * tf.range(tf.size(words, tf.int64)) + 1
    return tf.reduce_sum(words * odd * (1 - tf.one_hot(journal.CHECK, tf.size(words), dtype=tf.int64)))


def header(words: tf.Tensor, lineage: str, dims: Mapping[str, int], dense_floats: int) -> Header:
    """Reads the header and the counts of the record of int64 `words`."""
    top = _COUNTS + 2 * len(dims)
    head = tf.concat([words[:top], tf.zeros([top], tf.int64)], 0)[:top]  # a short record is refused by a check, too
    counts = tf.reshape(head[_COUNTS:], [-1, 2])
    floats = tf.reduce_sum(counts[:, 0] * tf.constant(list(dims.values()), tf.int64)) + dense_floats
    size = tf.size(words, tf.int64)
    name = np.frombuffer(lineage.encode().ljust(journal.LINEAGE_BYTES, b"\0"), "<i8")
    complete = [
        tf.equal(head[journal.CHECK], _check(words)),
        tf.reduce_all(counts >= 0),
        tf.equal(top + tf.reduce_sum(counts) + (floats + 1) // 2, size),
    ]
    same = [tf.reduce_all(head[journal.HEADER_WORDS : _COUNTS] == name), head[journal.LINEAGE_LENGTH] == len(lineage)]
    checks = [(tf.reduce_all(complete), "the journal is not whole")]
    checks += [(tf.reduce_all(same), "a journal of another lineage")]
    start, to, dense_seq = head[journal.START], head[journal.TO], head[journal.DENSE_SEQ]
    return Header(start, to, head[journal.LEARNED_UNTIL], dense_seq, counts, checks)


def body(
    words: tf.Tensor, head: Header, dims: Mapping[str, int], shapes: Mapping[str, tf.TensorShape]
) -> tuple[dict[str, TableTensors], dict[str, tf.Tensor]]:
    """Table -> its changes, and dense weight -> its value, of a record whose checks hold."""
    counts, rest = tf.reshape(tf.transpose(head.counts), [-1]), words[_COUNTS + 2 * len(dims) :]
    id_words = tf.reduce_sum(counts)
    ids = tf.split(rest[:id_words], counts, num=2 * len(dims))  # the keys of each table, then its removed keys
    floats = tf.reshape(tf.bitcast(rest[id_words:], tf.float32), [-1])
    changes: dict[str, TableTensors] = {}
    at = tf.zeros([], tf.int64)
    for i, (name, dim) in enumerate(dims.items()):
        size = head.counts[i, 0] * dim
        changes[name] = (ids[len(dims) + i], ids[i], tf.reshape(floats[at : at + size], [-1, dim]))
        at += size
    dense = {}
    for name in sorted(shapes):
        size = shapes[name].num_elements()
        dense[name] = tf.reshape(floats[at : at + size], shapes[name])
        at += size
    return changes, dense
