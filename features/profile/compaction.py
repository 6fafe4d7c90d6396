"""Compaction of the profile store: folds fresh rows into slices, coarsens and drops old ones, gives space back.

The counts do not change by it. Slices are coarsened so late that a reader may be `READER_LAG_MS` behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from features.profile import database
from features.profile.database import BUCKETS, COMMIT_BITS, LEVEL, NUMBER_BITS, Connection
from features.profile.rows import LEVELS, Int64s, Rows, empty, joined, matrix, merged, seal, slots, times, unsealed
from features.profile.transaction import ENTITIES, FRESH_WIDTH, Fresh
from streaming.slots import DAY_MS, HOUR_MS, WINDOWS, Slots

READER_LAG_MS = HOUR_MS
MOST_ROWS, MOST_PIECES = 4000, 24
"""A bucket with so many fresh rows, or in so many pieces, is folded: a read looks through them."""
_STAGGER = 1 + np.arange(BUCKETS) * 7 % BUCKETS / BUCKETS
"""Some buckets are folded at half of that, so that not all are full at once."""
AT_ONCE = 16
"""Buckets that are folded together."""
FREE_PAGES, FREED_AT_ONCE = 4000, 1000
"""So many free pages, and a quarter of the file, stay for what comes; so many are given back at once."""

Profile = tuple[int, int]
"""entity, id"""


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


def compact(connection: Connection, path: Path, declared: Slots, fresh: Fresh, now_ms: int, budget_ms: float) -> bool:
    """Folds and sweeps buckets for about `budget_ms` in one transaction. Returns whether more is to do."""
    end = time.monotonic() + budget_ms / 1000
    with database.transaction(connection, path, "BEGIN IMMEDIATE"):
        now_ms = max(now_ms, database.number(connection, database.COMPACTED))
        due_tick = now_ms * BUCKETS // DAY_MS
        swept = max(database.number(connection, database.SWEPT, due_tick), due_tick - BUCKETS)
        fold = Fold(connection, path, declared, now_ms)
        more = True
        while more and time.monotonic() < end:
            if full := _full(fresh):
                fold.fold(full, sweep=False)
                fresh.rows[full] = fresh.pieces[full] = 0
            elif swept < due_tick:
                ticks = range(swept + 1, min(due_tick, swept + AT_ONCE) + 1)
                if some := _filled(connection, fresh, [tick % BUCKETS for tick in ticks]):
                    fold.fold(some, sweep=True)
                    fresh.rows[some] = fresh.pieces[some] = 0
                swept += len(ticks)
            else:
                more = _give_back(connection)
        database.note(connection, database.COMPACTED, b"%d" % now_ms)
        database.note(connection, database.SWEPT, b"%d" % swept)
        return more


def _full(fresh: Fresh) -> list[int]:
    """The buckets that are due, the fullest first."""
    load = np.maximum(fresh.rows / MOST_ROWS, fresh.pieces / MOST_PIECES) * _STAGGER
    (due,) = np.nonzero(load >= 1)
    return [int(bucket) for bucket in due[np.argsort(-load[due])][:AT_ONCE]]


def _filled(connection: Connection, fresh: Fresh, buckets: list[int]) -> list[int]:
    """Those of the buckets that hold anything."""
    query = "SELECT 1 FROM profiles WHERE bucket = ? LIMIT 1"
    return [b for b in buckets if fresh.pieces[b] or connection.execute(query, (b,)).fetchone()]


def _give_back(connection: Connection) -> bool:
    """Gives free pages back to the disk. Returns whether there were any to give."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    surplus = free - max(FREE_PAGES, pages // 4)
    if surplus > 0:
        connection.execute(f"PRAGMA incremental_vacuum({min(surplus, FREED_AT_ONCE)})").fetchall()
    return bool(surplus > 0)


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
        keys = self._ensured(names, numbers)
        for level in range(len(LEVELS)):
            inflow = self._level(level, inflow, names, keys, sweep)
        if sweep:
            self._remove_empty(names, keys)

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

    def _level(self, level: int, inflow: Rows, names: list[Profile], keys: list[int], sweep: bool) -> Rows:
        """Adds to a level what belongs there. Returns what goes to older levels."""
        here = self._edges.levels(inflow.place) <= level
        touched = range(len(names)) if sweep else np.unique(inflow.owner[here]).tolist()
        stored = self._stored(level, touched, names, keys)
        stays = self._edges.levels(stored.place) <= level
        arrived, aged = inflow.where(here), stored.where(~stays)
        changed = np.unique(np.r_[arrived.owner, aged.owner])
        rows = joined((arrived, stored.where(stays)))
        if sweep:
            rows = rows.where(np.isin(rows.owner, changed))
        self._write(level, merged(rows, LEVELS[level]), changed, keys)
        return joined((inflow.where(~here), aged))

    def _stored(self, level: int, touched: Sequence[int], names: list[Profile], keys: list[int]) -> Rows:
        parts, owners, sizes = [], [], []
        for owner in touched:
            key = level * LEVEL + keys[owner]
            row = self._connection.execute("SELECT rows FROM slices WHERE key = ?", (key,)).fetchone()
            if row is not None:
                entity, profile = names[owner]
                data = unsealed(row[0], f"{self._path}: {ENTITIES[entity]} {profile}")
                parts.append(data)
                owners.append(owner)
                sizes.append(len(data) // 24)
        if not parts:
            return empty()
        return Rows(np.repeat(np.array(owners, np.int64), sizes), *matrix(parts, 3))

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

    def _remove_empty(self, names: list[Profile], keys: list[int]) -> None:
        """Removes the numbers of profiles that have no slices any more."""
        places = ", ".join(f"{level * LEVEL} + ?1" for level in range(len(LEVELS)))
        query = f"SELECT 1 FROM slices WHERE key IN ({places}) LIMIT 1"
        for (entity, profile), number in zip(names, keys, strict=True):
            if self._connection.execute(query, (number,)).fetchone() is None:
                bucket = number >> NUMBER_BITS
                self._connection.execute(
                    "DELETE FROM profiles WHERE bucket = ? AND entity = ? AND profile = ?", (bucket, entity, profile)
                )
