"""One commit of the profile store's writer: what it adds, pends, settles and forgets becomes visible together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from features.profile import database, pending
from features.profile.database import BUCKETS, COMMIT_BITS, LEVEL, Connection
from features.profile.outbox import Outbox
from features.profile.rows import LEVELS, MAX_MS, Int64s, matrix, places, seal, slots, times, unsealed
from features.profile.tombstones import ENTITIES, Tombstones
from streaming.slots import MINUTE_MS, Slots

MAX_COUNT = 2**31 - 1
FRESH_WIDTH = 4
"""Columns of a fresh row: profile, feature, place, count."""


@dataclass(frozen=True)
class Adds:
    """Columns of n adds. `slot` and `action` are places in the declared slots; a slot implies the entity."""

    slot: NDArray[Any]
    profile: NDArray[Any]
    feature: NDArray[Any]
    ts_ms: NDArray[Any]
    action: NDArray[Any]
    count: NDArray[Any]

    def where(self, chosen: NDArray[Any]) -> Adds:
        """The adds of a mask or of places."""
        return Adds(*(getattr(self, field.name)[chosen] for field in fields(self)))


class Fresh:
    """How many rows and pieces of each bucket wait to be folded."""

    def __init__(self, connection: Connection) -> None:
        self.rows, self.pieces = np.zeros(BUCKETS, np.int64), np.zeros(BUCKETS, np.int64)
        self.commit = 0
        query = f"SELECT key >> {COMMIT_BITS}, count(*), sum(length(rows)), max(key) FROM fresh GROUP BY 1"
        for bucket, pieces, size, key in connection.execute(query):
            self.pieces[bucket], self.rows[bucket] = pieces, size // (8 * FRESH_WIDTH)
            self.commit = max(self.commit, key & ((1 << COMMIT_BITS) - 1))


class Transaction:
    """What one commit does. `Profiles.writing` makes it."""

    def __init__(
        self, connection: Connection, path: Path, declared: Slots, fresh: Fresh, tombstones: Tombstones,
        outbox: Outbox | None,
    ) -> None:  # fmt: skip
        self._connection, self._path, self._declared, self._fresh = connection, path, declared, fresh
        self._entities = np.array([ENTITIES.index(slot.entity) for slot in declared.slots], np.int64)
        self._added: list[Int64s] = []
        self._tombstones, self.outbox = tombstones, outbox

    def add(self, adds: Adds, now_ms: int | None = None) -> None:
        """Adds counts. Raises InputError for the first one that is not allowed, and then adds none of them.

        With `now_ms`, an add of a time after the next minute is refused.
        """
        given = (adds.slot, adds.profile, adds.feature, adds.ts_ms, adds.action, adds.count)
        columns = [np.asarray(column).astype(np.int64, casting="safe") for column in given]
        slot, profile, feature, ts_ms, action, count = columns
        if any(column.shape != slot.shape or column.ndim != 1 for column in columns):
            raise InputError(f"adds have columns of {[c.shape for c in columns]}; allowed are columns of one length")
        latest = MAX_MS if now_ms is None else now_ms + MINUTE_MS
        for name, column, low, high in (
            ("slot", slot, 0, len(self._declared.slots) - 1),
            ("action", action, 0, len(self._declared.actions) - 1),
            ("ts_ms", ts_ms, 0, latest),
            ("count", count, -MAX_COUNT, MAX_COUNT),
        ):
            wrong = (column < low) | (column > high)
            if wrong.any():
                raise InputError(f"add: {name} is {column[wrong.argmax()]}; allowed is {low} to {high}")
        self._added.append(np.stack([profile, feature, places(slot, action, ts_ms), count])[:, count != 0])

    def positions(self, positions: Mapping[str, Any]) -> None:
        """Keeps the Kafka positions of topics; other topics keep theirs."""
        stored = json.loads(database.noted(self._connection, database.POSITIONS) or b"{}")
        data = json.dumps({**stored, **positions}).encode()
        database.note(self._connection, database.POSITIONS, data)

    def note(self, name: str, data: bytes) -> None:
        """Keeps a small state under a name."""
        database.note(self._connection, database.USER + name, data)

    def pend(self, rows: Sequence[pending.Pending]) -> None:
        """Keeps impressions whose window is open. Of rows of one impression the latest stands."""
        if rows:
            values = (max(row[1] for row in rows), pending.pack(rows))
            self._connection.execute("INSERT INTO pending (closes_ms, rows) VALUES (?, ?)", values)

    def settle(self, closed_ms: int) -> None:
        """Drops the pending impressions that close at `closed_ms` or before."""
        self._connection.execute("DELETE FROM pending WHERE closes_ms <= ?", (closed_ms,))
        database.note(self._connection, database.CLOSED, b"%d" % closed_ms)

    def forget(self, entity: str, profile: int, at_ms: int) -> None:
        """Removes what a profile did up to `at_ms`, for ever: an add of such a time is not counted any more.

        Of a slice that holds `at_ms`, what came later goes too.
        """
        if entity not in ENTITIES:
            raise InputError(f"forget: entity is {entity!r}; allowed is user or item")
        place = ENTITIES.index(entity)
        self._tombstones.put(self._connection, place, profile, at_ms)
        bucket = int(database.buckets_of(place, np.array([profile], np.int64))[0])
        if self.outbox is not None:
            self.outbox.put_profile(place, profile)
        self._forget_fresh(bucket)
        self._forget_slices(bucket, place, profile, at_ms)

    def _forget_fresh(self, bucket: int) -> None:
        first = bucket << COMMIT_BITS
        keys = (first, first + (1 << COMMIT_BITS) - 1)
        query = "SELECT key, rows FROM fresh WHERE key BETWEEN ? AND ?"
        for key, blob in self._connection.execute(query, keys).fetchall():
            rows = matrix([unsealed(blob, f"{self._path}: bucket {bucket}")], FRESH_WIDTH)
            left = self._unforgotten(rows)
            if left.shape != rows.shape:
                self._put("fresh", key, left)

    def _forget_slices(self, bucket: int, entity: int, profile: int, at_ms: int) -> None:
        query = "SELECT number FROM profiles WHERE bucket = ? AND entity = ? AND profile = ?"
        for (number,) in self._connection.execute(query, (bucket, entity, profile)).fetchall():
            for level, slice_ms in enumerate(LEVELS):
                key = level * LEVEL + number
                for (blob,) in self._connection.execute("SELECT rows FROM slices WHERE key = ?", (key,)).fetchall():
                    rows = matrix([unsealed(blob, f"{self._path}: {ENTITIES[entity]} {profile}")], 3)
                    left = rows[:, times(rows[1]) // slice_ms * slice_ms > at_ms]
                    if left.shape != rows.shape:
                        self._put("slices", key, left)

    def _put(self, table: str, key: int, rows: Int64s) -> None:
        if rows.shape[1]:
            blob = seal(np.ascontiguousarray(rows.T).tobytes())
            self._connection.execute(f"UPDATE {table} SET rows = ? WHERE key = ?", (blob, key))
        else:
            self._connection.execute(f"DELETE FROM {table} WHERE key = ?", (key,))

    def _unforgotten(self, rows: Int64s) -> Int64s:
        """The fresh rows that no tombstone covers."""
        covered = self._tombstones.cover(slots(rows[2]), rows[0], times(rows[2]))
        return rows[:, ~covered] if covered.any() else rows

    def flush(self) -> None:
        """Writes what was added until now: one piece for each bucket. The end of the commit does it, too."""
        rows = self._unforgotten(np.concatenate(self._added, 1)) if self._added else None
        self._added = []
        if rows is None or not rows.shape[1]:
            return
        if self.outbox is not None:
            self.outbox.put(slots(rows[2]), rows[0])
        buckets = database.buckets_of(self._entities[slots(rows[2])], rows[0])
        order = np.argsort(buckets.astype(np.uint16), kind="stable")
        buckets = buckets[order]
        data = memoryview(np.ascontiguousarray(rows.T[order]).tobytes())
        begins = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
        sizes = np.diff(np.r_[begins, len(buckets)])
        width, commit = 8 * FRESH_WIDTH, self._fresh.commit + 1
        pieces = zip(buckets[begins].tolist(), begins.tolist(), sizes.tolist(), strict=True)
        self._connection.executemany(
            "INSERT INTO fresh VALUES (?, ?)",
            ((b << COMMIT_BITS | commit, seal(data[at * width : (at + n) * width])) for b, at, n in pieces),
        )
        self._fresh.commit = commit
        self._fresh.rows[buckets[begins]] += sizes
        self._fresh.pieces[buckets[begins]] += 1
