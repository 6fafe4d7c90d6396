"""Folds the fresh rows of buckets into slices, and moves each slice to the level of its age.

Slices are coarsened so late that a reader may be READER_LAG_MS behind. What leaves the store is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.profile import database
from features.profile.database import COMMIT_BITS, LEVEL, NUMBER_BITS, Connection
from features.profile.rows import LEVELS, Int64s, Rows, joined, matrix, merged, of_owners, seal, slots, times, unsealed
from features.profile.tombstones import ENTITIES
from features.profile.transaction import FRESH_WIDTH
from streaming.slots import DAY_MS, HOUR_MS, WINDOWS, Slots

READER_LAG_MS = HOUR_MS

Profile = tuple[int, int]
"""entity, id"""


class Owned(NamedTuple):
    """The profiles of a fold: their names and numbers by owner, and the buckets whose profiles are all in it."""

    names: list[Profile]
    numbers: list[int]
    swept: Sequence[int] | None


class Edges:
    """The level of a row by its age at `now_ms`. `dropped` is the level of what leaves the store."""

    dropped = len(LEVELS)

    def __init__(self, declared: Slots, now_ms: int) -> None:
        def begin_ms(window: str) -> int:
            return WINDOWS[window].begin_ms(now_ms - READER_LAG_MS)

        keep_ms = np.array([slot.keep_ms for slot in declared.slots], np.int64)
        self._minute_ms = begin_ms("1h") // HOUR_MS * HOUR_MS
        self._hour_ms = begin_ms("1d") // DAY_MS * DAY_MS
        self._day_ms = (now_ms - READER_LAG_MS - keep_ms) // DAY_MS * DAY_MS
        self._oldest = np.array([3 if "all" in slot.windows else self.dropped for slot in declared.slots], np.int64)

    def levels(self, place: Int64s) -> Int64s:
        ts_ms, slot = times(place), slots(place)
        old = np.where(ts_ms >= self._day_ms[slot], 2, self._oldest[slot])
        return np.where(ts_ms >= self._minute_ms, 0, np.where(ts_ms >= self._hour_ms, 1, old))


class Fold:
    """Folds buckets within a transaction, by the edges of `now_ms`."""

    def __init__(self, connection: Connection, path: Path, declared: Slots, now_ms: int) -> None:
        self._connection, self._path, self._edges = connection, path, Edges(declared, now_ms)
        self._entities = np.array([ENTITIES.index(slot.entity) for slot in declared.slots], np.int64)

    def fold(self, buckets: Sequence[int], *, sweep: bool) -> None:
        """Moves the buckets' fresh rows into slices, and each slice that it reads to the level of its age.

        It reads the slices that it adds to; with `sweep`, all of the buckets.
        """
        columns = matrix(list(self._fresh(buckets)), FRESH_WIDTH)
        numbers = self._numbers(buckets)
        owners, names = self._owners(columns, numbers if sweep else {})
        inflow = Rows(owners, *columns[1:])
        owned = Owned(names, self._ensured(names, numbers), buckets if sweep else None)
        alive = np.zeros(len(names), bool)
        for level in range(len(LEVELS)):
            inflow = self._level(level, inflow, owned, alive)
        if sweep:
            gone = [names[owner] for owner in np.flatnonzero(~alive)]
            self._connection.executemany(
                "DELETE FROM profiles WHERE bucket = ? AND entity = ? AND profile = ?",
                [(numbers[name] >> NUMBER_BITS, *name) for name in gone],
            )

    def _fresh(self, buckets: Sequence[int]) -> Iterator[memoryview]:
        """Takes the fresh pieces of the buckets out of their table."""
        for bucket in buckets:
            keys = (bucket << COMMIT_BITS, (bucket + 1 << COMMIT_BITS) - 1)
            found = self._connection.execute("SELECT rows FROM fresh WHERE key BETWEEN ? AND ?", keys).fetchall()
            yield from (unsealed(blob, f"{self._path}: bucket {bucket}") for (blob,) in found)
            if found:
                self._connection.execute("DELETE FROM fresh WHERE key BETWEEN ? AND ?", keys)

    def _numbers(self, buckets: Sequence[int]) -> dict[Profile, int]:
        query = "SELECT entity, profile, number FROM profiles WHERE bucket = ?"
        return {(e, p): n for b in buckets for e, p, n in self._connection.execute(query, (b,))}

    def _owners(self, columns: Int64s, known: dict[Profile, int]) -> tuple[Int64s, list[Profile]]:
        """The owner of each fresh row, and the owners: the profiles of the rows, then those that are known beside."""
        entity, profile = self._entities[slots(columns[2])], columns[0]
        order = np.lexsort((profile, entity))
        entity, profile = entity[order], profile[order]
        first = np.ones(len(order), bool)
        first[1:] = (entity[1:] != entity[:-1]) | (profile[1:] != profile[:-1])
        owners = np.empty(len(order), np.int64)
        owners[order] = np.cumsum(first) - 1
        names = list(zip(entity[first].tolist(), profile[first].tolist(), strict=True))
        return owners, [*names, *(known.keys() - set(names))]

    def _ensured(self, names: list[Profile], numbers: dict[Profile, int]) -> list[int]:
        """The number of each profile; a new one gets the next of its bucket."""
        new = [name for name in names if name not in numbers]
        if new:
            entity, profile = np.array(new, np.int64).T
            buckets = database.buckets_of(entity, profile).tolist()
            newest: dict[int, int] = {}
            for number in numbers.values():
                bucket = number >> NUMBER_BITS
                newest[bucket] = max(number, newest.get(bucket, number))
            for name, bucket in zip(new, buckets, strict=True):
                numbers[name] = newest[bucket] = newest.get(bucket, (bucket << NUMBER_BITS) - 1) + 1
            rows = ((b, *name, numbers[name]) for name, b in zip(new, buckets, strict=True))
            self._connection.executemany("INSERT INTO profiles VALUES (?, ?, ?, ?)", rows)
        return [numbers[name] for name in names]

    def _level(self, level: int, inflow: Rows, owned: Owned, alive: NDArray[np.bool_]) -> Rows:
        """Adds to a level what belongs there, and marks whose rows it holds. Returns what goes to older levels."""
        here = self._edges.levels(inflow.place) <= level
        stored = self._stored(level, np.unique(inflow.owner[here]), owned)
        stays = self._edges.levels(stored.place) <= level
        arrived, aged = inflow.where(here), stored.where(~stays)
        changed = np.unique(np.r_[arrived.owner, aged.owner])
        rows = joined((arrived, stored.where(stays)))
        alive[rows.owner] = True
        if owned.swept is not None:
            rows = rows.where(np.isin(rows.owner, changed))
        self._write(level, merged(rows, LEVELS[level]), changed, owned.numbers)
        return joined((inflow.where(~here), aged))

    def _stored(self, level: int, touched: Int64s, owned: Owned) -> Rows:
        """The stored rows of a level: of the touched owners, or of all in a sweep."""

        def whose(owner: int) -> str:
            entity, profile = owned.names[owner]
            return f"{self._path}: {ENTITIES[entity]} {profile}"

        return of_owners((owner, unsealed(blob, whose(owner))) for owner, blob in self._blobs(level, touched, owned))

    def _blobs(self, level: int, touched: Int64s, owned: Owned) -> Iterator[tuple[int, bytes]]:
        if owned.swept is None:
            for owner in touched.tolist():
                key = level * LEVEL + owned.numbers[owner]
                for (blob,) in self._connection.execute("SELECT rows FROM slices WHERE key = ?", (key,)).fetchall():
                    yield owner, blob
            return
        owner_of = {number: owner for owner, number in enumerate(owned.numbers)}
        for bucket in owned.swept:
            first = level * LEVEL + (bucket << NUMBER_BITS)
            keys = (first, first + (1 << NUMBER_BITS) - 1)
            for key, blob in self._connection.execute("SELECT key, rows FROM slices WHERE key BETWEEN ? AND ?", keys):
                yield owner_of[key - level * LEVEL], blob

    def _write(self, level: int, rows: Rows, changed: Int64s, keys: list[int]) -> None:
        """Replaces the blobs of the changed owners by the rows, which are in the order of their owners."""
        begins = np.searchsorted(rows.owner, changed).tolist()
        ends = np.searchsorted(rows.owner, changed, "right").tolist()
        data = memoryview(np.stack(rows[1:], 1).tobytes())
        full, gone = [], []
        for owner, begin, end in zip(changed.tolist(), begins, ends, strict=True):
            key = level * LEVEL + keys[owner]
            if begin < end:
                full.append((key, seal(data[24 * begin : 24 * end])))
            else:
                gone.append((key,))
        self._connection.executemany("INSERT OR REPLACE INTO slices VALUES (?, ?)", full)
        self._connection.executemany("DELETE FROM slices WHERE key = ?", gone)
