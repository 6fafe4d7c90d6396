"""The table path -> items: each row has `cap` slots, a 64-bit id or nothing each, in float32 numbers.

A slot is three numbers, which float32 holds exactly: bits 0-21 of the id, bits 22-43, and bits 44-63 plus 2^20 as the
mark of an id. A row of zeros, which an unknown path reads, has no ids. Ids as raw bits would be numbers such as NaN,
which are not equal to themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

WIDTH = 3
"""Numbers of a slot."""
_BITS, _MARK = 22, 1 << 20
_LOW = (1 << _BITS) - 1


def rows_of(ids: NDArray[np.int64], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns the rows float32[n, cap * 3] of the ids int64[n, cap] where `known` is true."""
    bits = ids.view(np.uint64)
    parts = bits & _LOW, bits >> np.uint64(_BITS) & _LOW, (bits >> np.uint64(2 * _BITS)) + _MARK
    rows: NDArray[np.float32] = np.where(known[..., None], np.stack(parts, axis=-1), 0).astype(np.float32)
    return rows.reshape(len(ids), -1)


def ids_of(rows: Any) -> tuple[Any, Any]:
    """Returns the ids int64[n, cap] of rows float32[n, cap * 3], and where there is one: bool[n, cap]."""
    parts = tf.cast(tf.reshape(rows, [tf.shape(rows)[0], rows.shape[-1] // WIDTH, WIDTH]), tf.int64)
    low, middle, high = tf.unstack(parts, axis=-1)
    known = high >= _MARK
    high = tf.where(known, high - _MARK, 0)
    wrapped = tf.where(high >= _MARK // 2, high - _MARK, high)  # the sign
    return low + middle * 2**_BITS + wrapped * 2 ** (2 * _BITS), known
