"""The profile store: what each user did and what each item got, by time (docs/profiles.md).

store = Profiles(folder, slots, writes=True)            # one process writes
with store.writing() as commit:
    commit.add(Adds(...))
    commit.positions(reader_positions)
store.compact(now_ms)

store = Profiles(folder, slots)                         # any number read
(authors,) = store.read("user", [7, 9], [Query("user_author", "7d", by="like", k=10)], now_ms)
"""

from __future__ import annotations

import json
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from common.disk import hold
from common.errors import InputError
from features.profile import compaction, database, pending
from features.profile.database import COMMIT_BITS, FILE, LEVEL
from features.profile.fold import READER_LAG_MS
from features.profile.outbox import Outbox, Waiting, lapse
from features.profile.query import Answer, Checked, Evaluation, Query, check_now, checked, spread
from features.profile.rows import LEVELS, Int64s, Rows, empty, joined, of_owners, packed, slots, unsealed
from features.profile.tombstones import ENTITIES, Tombstones
from features.profile.transaction import FRESH_WIDTH, Fresh, Transaction
from streaming.slots import WINDOWS, Slots

_OLDEST_LEVEL = {name: level for level, name in enumerate(WINDOWS)}
"""Window -> the oldest level of slices that can hold a part of it."""

_FRESH = f"""
SELECT asked.value, rows FROM json_each(?) AS asked
CROSS JOIN fresh ON fresh.key BETWEEN asked.value << {COMMIT_BITS} AND (asked.value + 1 << {COMMIT_BITS}) - 1
"""
_SLICES = """
SELECT asked.value ->> 0, rows FROM json_each(?) AS asked
CROSS JOIN profiles ON bucket = asked.value ->> 1 AND entity = ? AND profile = asked.value ->> 2
CROSS JOIN slices ON slices.key IN ({})
"""


class Profiles:
    """The store of one folder. Its methods may be called from any thread; commits and compaction take turns.

    Raises InputError if the folder has no store and `writes` is false, for a store of other slots, and if another
    process writes. `outbox`: the writer keeps what has changed for Redis (features/profile/replica.py).
    """

    def __init__(self, folder: Path, declared: Slots, *, writes: bool = False, outbox: bool = False) -> None:
        self._path, self._declared = Path(folder) / FILE, declared
        self._entities = np.array([ENTITIES.index(slot.entity) for slot in declared.slots], np.int64)
        self._reading, self._writing = threading.Lock(), threading.RLock()
        self._writer: database.Connection | None = None
        self._outbox: Outbox | None = None
        self.published = 0
        """The newest version of the outbox that Redis has. The next commit drops it."""
        with ExitStack() as opened:
            if writes:
                opened.enter_context(hold(Path(folder) / "profiles.lock", "one process writes the profiles"))
                self._writer = opened.enter_context(closing(database.connect(self._path, writes=True)))
                database.adopt(self._writer, self._path, declared, writes=True)
                self._fresh, self.tombstones = Fresh(self._writer), Tombstones(self._writer, declared)
                with database.transaction(self._writer, self._path, "BEGIN IMMEDIATE"):
                    if outbox:
                        self._outbox = Outbox(self._writer, self._path, declared)
                    else:
                        lapse(self._writer)
                self.published = self._outbox.dropped() if self._outbox is not None else 0
            self._reader = opened.enter_context(closing(database.connect(self._path, writes=False)))
            database.adopt(self._reader, self._path, declared, writes=False)
            self._opened = opened.pop_all()
        weakref.finalize(self, self._opened.close)

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """One commit: durable and visible at the end of the block, undone if the block raises."""
        with self._writing, self._undoing(), database.transaction(self._open(), self._path, "BEGIN IMMEDIATE"):
            commit = Transaction(self._open(), self._path, self._declared, self._fresh, self.tombstones, self._outbox)
            yield commit
            commit.flush()
            if self._outbox is not None:
                self._outbox.drop(self.published)

    def compact(self, now_ms: int, budget_ms: float = 200) -> bool:
        """Compacts for about `budget_ms`. Returns whether more is to do. `now_ms`: the clock of event time."""
        with self._writing, self._undoing():
            return compaction.compact(
                self._open(), self._path, self._declared, self._fresh, check_now(now_ms), budget_ms
            )

    def _open(self) -> database.Connection:
        if self._writer is None:
            raise InputError(f"{self._path}: opened to read; allowed is to write with writes=True")
        return self._writer

    @contextmanager
    def _undoing(self) -> Iterator[None]:
        """What the block has done to the counts of fresh rows is undone with its transaction."""
        try:
            yield
        except BaseException:
            with database.named(self._path):
                self._fresh, self.tombstones = Fresh(self._open()), Tombstones(self._open(), self._declared)
            raise

    def waiting(self, most: int) -> Waiting:
        """The profiles that wait for Redis, about `most`: the oldest ones."""
        with self._writing, database.named(self._path):
            assert self._outbox is not None, "opened without an outbox"
            return self._outbox.waiting(self.published, most)

    def all_wait(self) -> None:
        """All profiles wait for Redis: it has lost some."""
        with self.writing() as commit:
            assert commit.outbox is not None, "opened without an outbox"
            commit.outbox.put_all()

    def store_id(self) -> bytes:
        """The name of this store among others: drawn once."""
        if (stored := self._note(database.STORE_ID)) is None:
            stored = uuid.uuid4().hex.encode()
            with self._writing, database.transaction(self._open(), self._path, "BEGIN IMMEDIATE"):
                database.note(self._open(), database.STORE_ID, stored)
        return stored

    def compacted_ms(self) -> int:
        """The clock of the newest compaction; -1 before the first one."""
        return int(self._note(database.COMPACTED) or -1)

    def rows_of(self, entity: int, ids: Int64s) -> Rows:
        """All that is stored of some profiles, whose ids are in order. The owner of a row is a place in `ids`."""
        with self._reading, database.transaction(self._reader, self._path):
            buckets = database.buckets_of(entity, ids)
            fresh = self._fresh_rows(ids, buckets)
            fresh = fresh.where(self._entities[slots(fresh.place)] == entity)
            slices = self._slices(entity, ids.tolist(), buckets.tolist(), range(len(LEVELS)))
        return joined((fresh, slices))

    def positions(self) -> dict[str, Any]:
        """The Kafka positions of the last commit, by topic."""
        positions: dict[str, Any] = json.loads(self._note(database.POSITIONS) or b"{}")
        return positions

    def forgotten(self, entity: str) -> dict[int, int]:
        """Each forgotten profile, and the time up to which it is forgotten."""
        with self._reading, database.named(self._path):
            query = "SELECT profile, at_ms FROM tombstones WHERE entity = ?"
            return dict(self._reader.execute(query, (ENTITIES.index(entity),)).fetchall())

    def noted(self, name: str) -> bytes | None:
        """What a commit has noted under the name."""
        return self._note(database.USER + name)

    def _note(self, name: str) -> bytes | None:
        with self._reading, database.named(self._path):
            return database.noted(self._reader, name)

    def pending(self) -> Iterator[pending.Pending]:
        """The pending impressions: of each one its latest row."""
        with self._reading, database.named(self._path):
            blobs = self._reader.execute("SELECT rows FROM pending ORDER BY number").fetchall()
            closed_ms = database.number(self._reader, database.CLOSED)
        latest = {}
        for (blob,) in blobs:
            for row in pending.unpack(blob, f"{self._path}: pending impressions"):
                latest[row[0]] = row
        yield from (row for row in latest.values() if row[1] > closed_ms)

    def read(self, entity: str, profiles: Sequence[int], queries: Sequence[Query], now_ms: int) -> list[Answer]:
        """An answer for each query, all from one snapshot, at the time `now_ms` of event time.

        A profile that the store does not know has no features. Raises InputError for a query that the slots do not
        allow, for a time more than an hour before the newest compaction's, and for a corrupt blob.
        """
        if entity not in ENTITIES:
            raise InputError(f"entity is {entity!r}; allowed is user or item")
        plans = [checked(query, self._declared, entity) for query in queries]
        ids = owners = np.asarray(profiles, np.int64)
        if unordered := not (ids[1:] > ids[:-1]).all():
            ids, owners = np.unique(ids, return_inverse=True)
        rows = self._rows(ENTITIES.index(entity), ids, plans, check_now(now_ms))
        evaluation = Evaluation(rows, len(ids), len(self._declared.actions), now_ms)
        answers = [evaluation.answer(plan) for plan in plans]
        return [spread(answer, owners) for answer in answers] if unordered else answers

    def _rows(self, entity: int, ids: Int64s, plans: list[Checked], now_ms: int) -> Rows:
        """What is stored of the profiles, of the ages that are asked for."""
        levels = range(max((_OLDEST_LEVEL[plan.window] for plan in plans), default=-1) + 1)
        with self._reading, database.transaction(self._reader, self._path):
            compacted_ms = database.number(self._reader, database.COMPACTED)
            if now_ms < compacted_ms - READER_LAG_MS:
                allowed = f"{compacted_ms - READER_LAG_MS} or later, since older slices are merged"
                raise InputError(f"{self._path}: now_ms is {now_ms}; allowed is {allowed}")
            buckets = database.buckets_of(entity, ids)
            fresh = self._fresh_rows(ids, buckets)
            slices = self._slices(entity, ids.tolist(), buckets.tolist(), levels)
        return joined((fresh, slices))

    def _fresh_rows(self, ids: Int64s, buckets: Int64s) -> Rows:
        """What no compaction has folded yet, of either entity: the slots that are asked for tell them apart."""
        found = self._reader.execute(_FRESH, (json.dumps(list(set(buckets.tolist()))),))
        parts = [unsealed(blob, f"{self._path}: bucket {bucket}") for bucket, blob in found]
        if not parts:
            return empty()
        rows = packed(parts, FRESH_WIDTH)
        owner = np.minimum(np.searchsorted(ids, rows[:, 0]), len(ids) - 1)
        of_ids = np.flatnonzero(ids[owner] == rows[:, 0])
        return Rows(owner[of_ids], *rows[of_ids, 1:].T)

    def _slices(self, entity: int, ids: list[int], buckets: list[int], levels: range) -> Rows:
        query = _SLICES.format(", ".join(f"number + {level * LEVEL}" for level in levels) or "NULL")
        asked = json.dumps([[k, bucket, profile] for k, (bucket, profile) in enumerate(zip(buckets, ids, strict=True))])
        found = self._reader.execute(query, (asked, entity))
        whose = f"{self._path}: {ENTITIES[entity]} "
        return of_owners((owner, unsealed(blob, f"{whose}{ids[owner]}")) for owner, blob in found)

    def close(self) -> None:
        with self._reading, self._writing:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
