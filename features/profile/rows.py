"""The rows of profiles: how counts are packed, sealed with a checksum, and merged into slices of time.

    a row, 24 bytes:            feature id | place | count          all int64, little-endian
    a place, 55 bits:           slot (6) | action (7) | ts_ms (42), the time of the newest event of the row's slice
    a blob:                     CRC-32C of the rows (4 bytes) | rows

A slice is the piece of time that holds `ts_ms`. How long it is follows from where the blob is kept (LEVELS), so no row
has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from common.errors import InputError
from streaming.slots import DAY_MS, HOUR_MS, MINUTE_MS

Int64s = NDArray[np.int64]

TIME_BITS, ACTION_BITS, SLOT_BITS = 42, 7, 6
MAX_MS = (1 << TIME_BITS) - 1
MAX_ACTION = (1 << ACTION_BITS) - 1
LEVELS = (MINUTE_MS, HOUR_MS, DAY_MS, MAX_MS + 1)
"""The lengths of the slices by age: a minute, an hour, a day, and all time before."""
_SLICE_BITS = 27
"""A minute's number has as many bits at most."""
_CRC_BYTES = 4


class Rows(NamedTuple):
    """Columns of n rows. `owner` is the place of the row's profile in the caller's list."""

    owner: Int64s
    feature: Int64s
    place: Int64s
    counts: Int64s

    def where(self, chosen: NDArray[Any]) -> Rows:
        """The rows of a mask or of places."""
        return Rows(*(column[chosen] for column in self))


def empty() -> Rows:
    return Rows(*(np.empty(0, np.int64) for _ in Rows._fields))


def joined(parts: Iterable[Rows]) -> Rows:
    columns = zip(*parts, strict=True)
    return Rows(*(np.concatenate(column) for column in columns))


def times(place: Int64s) -> Int64s:
    """The times of the places, in ms."""
    return place & MAX_MS


def slots(place: Int64s) -> Int64s:
    """The numbers of the slots of the places."""
    return place >> (TIME_BITS + ACTION_BITS)


def actions(place: Int64s) -> Int64s:
    """The numbers of the actions of the places."""
    return (place >> TIME_BITS) & MAX_ACTION


def places(slot: Int64s, action: Int64s, ts_ms: Int64s) -> Int64s:
    return (slot << (TIME_BITS + ACTION_BITS)) | (action << TIME_BITS) | ts_ms


def merged(rows: Rows, slice_ms: int) -> Rows:
    """One row for each owner, slot, action, slice of `slice_ms` and feature, in this order.

    Counts are added. The time is that of the newest event.
    """
    if not len(rows.owner):
        return rows
    slices = times(rows.place) // slice_ms
    key = ((rows.owner << (SLOT_BITS + ACTION_BITS) | rows.place >> TIME_BITS) << _SLICE_BITS) | slices
    order = np.lexsort((rows.feature, key))
    key, feature = key[order], rows.feature[order]
    first = np.flatnonzero(np.r_[True, (key[1:] != key[:-1]) | (feature[1:] != feature[:-1])])
    return Rows(
        rows.owner[order[first]],
        feature[first],
        np.maximum.reduceat(rows.place[order], first),
        np.add.reduceat(rows.counts[order], first),
    )


def seal(data: bytes | memoryview) -> bytes:
    """The blob of packed rows."""
    return crc32c(data).to_bytes(_CRC_BYTES, "little") + bytes(data)


def unsealed(blob: Any, whose: str) -> memoryview:
    """The packed rows of a blob. Raises InputError with `whose` if the blob is not what was written."""
    data = memoryview(blob)[_CRC_BYTES:] if isinstance(blob, bytes) and len(blob) > _CRC_BYTES else None
    if data is None or int.from_bytes(blob[:_CRC_BYTES], "little") != crc32c(data):
        raise InputError(f"{whose}: a blob is corrupt, its checksum differs")
    return data


def packed(parts: list[memoryview], width: int) -> Int64s:
    """Packed rows as they are, int64[n, width]."""
    return np.frombuffer(b"".join(parts), "<i8").reshape(-1, width)


def matrix(parts: list[memoryview], width: int) -> Int64s:
    """The columns of packed rows, int64[width, n]."""
    return np.ascontiguousarray(packed(parts, width).T)


def of_owners(parts: Iterable[tuple[int, memoryview]]) -> Rows:
    """The packed rows of some owners, 24 bytes a row."""
    owned = list(parts)
    if not owned:
        return empty()
    sizes = [len(data) // 24 for _, data in owned]
    owners = np.repeat(np.array([owner for owner, _ in owned], np.int64), sizes)
    return Rows(owners, *matrix([data for _, data in owned], 3))
