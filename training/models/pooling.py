"""Pools the rows of a list of ids into one row. Nothing else in the project does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


def mean_of_lists(rows: Any, row_splits: Any) -> Any:
    """Returns the means of the rows [row_splits[i], row_splits[i + 1]), float32[n, dim]; zeros for an empty list."""
    lengths = row_splits[1:] - row_splits[:-1]
    places = tf.range(tf.shape(rows, row_splits.dtype)[0])
    owner = tf.searchsorted(row_splits[1:], places, side="right")
    sums = tf.math.unsorted_segment_sum(rows, owner, tf.size(lengths))
    return sums / tf.cast(tf.maximum(lengths, 1), tf.float32)[:, None]


def pooled(rows: Mapping[str, Any], row_splits: Mapping[str, Any]) -> dict[str, Any]:
    """Turns feature -> rows of its ids into feature -> float32[n, dim]. `row_splits` has the features of kind ids."""
    return {name: mean_of_lists(r, row_splits[name]) if name in row_splits else r for name, r in rows.items()}
