"""Numbers that Python and Java both compute: the hash, the draw of an impression, the sum that proves "exactly once".

`text_id` makes an id of a text, for a source or an app whose ids are texts.

The formulas are in docs/example.md, the shared vectors in tests/vectors/hash.json. All arithmetic is modulo 2^64,
which is what NumPy's uint64 arrays do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from streaming.declaration import INT64_MAX, RESERVED_IDS

Ids: TypeAlias = "Sequence[str] | pa.Array | pa.ChunkedArray"

_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


def fnv1a64(texts: Ids, start: int = int(_BASIS)) -> NDArray[np.uint64]:
    """FNV-1a of the UTF-8 bytes of each text: uint64[n]. `start` is the state after a common prefix."""
    lengths, offsets, data = _bytes(texts)
    state = np.full(len(lengths), start, np.uint64)
    for place in range(int(lengths.max(initial=0))):
        # Each turn takes one byte of every text. The number of turns is the length of the longest text.
        rows = np.flatnonzero(lengths > place)
        state[rows] = (state[rows] ^ data[offsets[rows] + place].astype(np.uint64)) * _PRIME
    return state


@lru_cache(maxsize=1 << 16)
def text_id(text: str) -> int:
    """An id for a text, such as a brand or a UUID: FNV-1a of its UTF-8 bytes as an int64, never a reserved id.

    Use the same function in the source and in the app. Two of a million texts are one id with a chance of 3e-8.
    """
    state = int(_BASIS)
    for byte in text.encode():
        state = (state ^ byte) * int(_PRIME) % 2**64
    value = state - 2**64 if state > INT64_MAX else state
    return value + len(RESERVED_IDS) if value in RESERVED_IDS else value


def mix64(values: ArrayLike) -> NDArray[np.uint64]:
    """splitmix64's finalizer of each value: uint64[n]."""
    x = np.atleast_1d(np.asarray(values, np.uint64))
    x = (x ^ (x >> _30)) * _MIX[0]
    x = (x ^ (x >> _27)) * _MIX[1]
    return x ^ (x >> _31)


def draw(ids: Ids, salt: str) -> NDArray[np.float64]:
    """The draw of each impression, in [0, 1): float64[n]. The join writes a negative if it is below pi."""
    prefix = int(fnv1a64([salt + ":"])[0])
    return (mix64(fnv1a64(ids, prefix)) >> _11).astype(np.float64) * 2.0**-53


def learned_sum(ids: Ids | NDArray[np.uint64], tasks: ArrayLike, labels: ArrayLike) -> int:
    """The sum modulo 2^64 over learned (impression, task, label) triples. Each argument has one entry a triple.

    `tasks` are places in the declaration, `labels` are 0 or 1. `ids` may be `fnv1a64` of the ids, so that an
    impression of several tasks is hashed once.
    """
    hashed = ids if isinstance(ids, np.ndarray) and ids.dtype == np.uint64 else fnv1a64(ids)
    pair = np.uint64(2) * np.asarray(tasks, np.uint64) + np.asarray(labels, np.uint64) + np.uint64(1)
    if pair.ndim != 1 or len(pair) != len(hashed):
        raise ValueError(f"learned_sum: {len(hashed)} ids, tasks and labels of shape {pair.shape}")
    return int(mix64(hashed ^ mix64(pair)).sum(dtype=np.uint64))


def _bytes(texts: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Lengths int64[n], offsets int64[n] and the bytes they point into."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    array = (texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())).cast(pa.large_binary())
    if array.null_count:
        raise ValueError("a text to hash is null")
    _, ends, data = array.buffers()
    if ends is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8)
    bounds = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.diff(bounds), bounds[:-1], np.frombuffer(data if data is not None else b"", np.uint8)
