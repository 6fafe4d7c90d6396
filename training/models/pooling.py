"""From the rows of single ids to one row a feature: the only place where lists of ids are pooled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


def mean_of_lists(rows: Any, row_splits: Any) -> Any:
    """float32[n, dim]: the mean of the rows [row_splits[i], row_splits[i + 1]); an empty list is zeros."""
    lengths = row_splits[1:] - row_splits[:-1]
    owner = tf.repeat(tf.range(tf.size(lengths)), lengths)
    sums = tf.math.unsorted_segment_sum(rows, owner, tf.size(lengths))
    return sums / tf.cast(tf.maximum(lengths, 1), tf.float32)[:, None]


def pooled(rows: Mapping[str, Any], row_splits: Mapping[str, Any]) -> dict[str, Any]:
    """Feature -> float32[n, dim], from feature -> the rows of its ids; `row_splits` has the features that are lists."""
    return {name: mean_of_lists(r, row_splits[name]) if name in row_splits else r for name, r in rows.items()}
