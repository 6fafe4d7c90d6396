"""Retrieves items for users in a graph of stock ops: beam search, the items at its paths, and the best of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from training.models.retrieval.network import PathNetwork
from training.models.retrieval.slots import ids_of

NONE = float("-inf")
"""The score of a place that has no item."""


def candidates(network: PathNetwork, users: Any, width: int, rows: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Returns the items at a beam's paths int64[n, m], and which of the places count: bool[n, m].

    `rows(paths int64[p])` gives the rows of the table path -> items (slots.py). A place without an item does not count,
    nor does a further place of the same item.
    """
    paths, _ = network.beam(users, width)
    n = tf.shape(paths)[0]
    ids, known = ids_of(rows(tf.reshape(paths, [-1])))
    places = paths.shape[1] * ids.shape[1]
    ids, known = tf.reshape(ids, [n, places]), tf.reshape(known, [n, places])
    ids = tf.where(known, ids, tf.int64.max)
    ids = tf.sort(ids, axis=1)
    first = tf.concat([tf.ones([n, 1], tf.bool), ids[:, 1:] != ids[:, :-1]], axis=1)
    return ids, tf.logical_and(first, ids != tf.int64.max)


def best(ids: Any, count: Any, scores: Any, k: Any) -> tuple[Any, Any]:
    """Returns the k items of the largest scores int64[n, k], the best first, and their scores, -inf for no item."""
    scores, order = tf.math.top_k(tf.where(count, scores, NONE), tf.minimum(k, tf.shape(ids)[1]))
    found = tf.gather(ids, order, batch_dims=1)
    return tf.where(scores > NONE, found, 0), scores
