"""Judges which events count, and turns them into adds for the profile store.

    judge = Judge(slots, window_ms, max_disorder_ms)
    judge.shown("i1", user, item, ts_ms, {"author": 7}); judge.action("i1", "click", ts_ms + 900)
    changes = judge.take()          # adds, and what of the judge's own state has changed, for one transaction

An impression counts once, by its id. Of each declared action of an impression the first one within its window counts. A
late or repeated event does not count, as in the join. An action that comes before its impression waits for it. The
impressions whose window is open, and the waiting actions, are the judge's state beside a small clock. The store keeps
both (`pend`, `settle`, `note`), so that a killed process continues from the last transaction.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson

from features.profile.transaction import Adds
from streaming.slots import BY_ITEM, Slots
from streaming.source import Exposure

USER, ITEM, AT_MS, VALUES, DONE = range(5)
"""The places of an impression's record: ids, time, the values of each feature, a bit for each action that counted."""
Record = list[Any]
_IS_SHOWN = 1


class Changes(NamedTuple):
    """What has changed since the last `take`: for `Transaction.add`, `pend`, `settle` and `note`."""

    adds: Adds
    pending: list[tuple[str, int, bytes]]
    closed_ms: int
    clock: bytes


class Judge:
    """`now_ms` is the newest event time. Events may arrive in any order.

    `clock` takes the event time of a partition. What is at `closed_ms` or before it is late.
    """

    def __init__(self, slots: Slots, window_ms: int, max_disorder_ms: int) -> None:
        self.window_ms, self.max_disorder_ms = window_ms, max_disorder_ms
        self.now_ms = self.closed_ms = -1
        self.counted = self.ignored = 0
        self._adds = _Adds(slots)
        self._places = {action: place for place, action in enumerate(slots.actions)}
        self._beats: dict[tuple[str, int], int] = {}
        self._least_ms = -1
        self._open: dict[str, Record] = {}
        self._held: dict[str, list[tuple[int, str]]] = {}
        self._closing: list[tuple[int, str]] = []
        self._touched: set[str] = set()

    def shown(self, impression_id: str, user: int, item: int, ts_ms: int, features: Mapping[str, Any]) -> None:
        """Counts an impression. Ignores one that is late or repeated."""
        if impression_id in self._open or ts_ms <= self.closed_ms:
            self.ignored += 1
            return
        record = [user, item, ts_ms, self._adds.values(features), _IS_SHOWN]
        self._open[impression_id] = record
        heapq.heappush(self._closing, (ts_ms + self.window_ms, impression_id))
        self._touched.add(impression_id)
        self._count(record, 0, ts_ms)
        if impression_id in self._held:
            for at_ms, task in sorted(self._held.pop(impression_id)):
                self.action(impression_id, task, at_ms)

    def action(self, impression_id: str, task: str, ts_ms: int) -> None:
        """Counts the first action of a task within an impression's window. Holds one whose impression is not there."""
        record = self._open.get(impression_id)
        if record is None:
            if ts_ms > self.closed_ms:
                self._held.setdefault(impression_id, []).append((ts_ms, task))
                heapq.heappush(self._closing, (ts_ms, impression_id))
                self._touched.add(impression_id)
            else:
                self.ignored += 1
            return
        place = self._places[task]
        if record[DONE] >> place & 1 or not record[AT_MS] <= ts_ms <= record[AT_MS] + self.window_ms:
            self.ignored += 1
            return
        record[DONE] |= 1 << place
        self._touched.add(impression_id)
        self._count(record, place, ts_ms)

    def clock(self, topic: str, partition: int, ms: int, partitions: int) -> None:
        """Moves the event time of one of `partitions` partitions. Before that of the slowest one, less the disorder, no
        event arrives any more; the join counts it in the same way."""
        key = topic, partition
        before = self._beats.get(key, -1)
        if ms <= before and before >= 0:
            return
        self._beats[key] = ms
        if len(self._beats) < partitions or before > self._least_ms:
            return
        self._least_ms = min(self._beats.values())
        self.closed_ms = max(self.closed_ms, self._least_ms - self.max_disorder_ms - 1)
        self.now_ms = max(self.now_ms, self._least_ms)
        self._close()

    def time_of(self, topic: str, partition: int) -> int | None:
        """The event time of a partition; None before the first call of `clock` for it."""
        return self._beats.get((topic, partition))

    def seed(self, exposures: Iterable[Exposure]) -> None:
        """Counts exposures of the source's history. Their actions do not move the clock."""
        for e in exposures:
            record = [e.user_id, e.item_id, e.ts_ms, self._adds.values(e.features), _IS_SHOWN]
            self._count(record, 0, e.ts_ms)
            for task, at_ms in e.outcomes.items():
                if at_ms <= e.ts_ms + self.window_ms:
                    self._count(record, self._places[task], at_ms, moves=False)

    def take(self) -> Changes:
        """Returns what has changed since the last call."""
        pending = []
        for impression_id in self._touched:
            if (record := self._open.get(impression_id)) is not None:
                row = record[AT_MS] + self.window_ms, orjson.dumps(record)
            elif (held := self._held.get(impression_id)) is not None:
                row = max(held)[0], orjson.dumps({"held": held})
            else:
                continue
            pending.append((impression_id, *row))
        self._touched = set()
        return Changes(self._adds.take(), pending, self.closed_ms, self._clock())

    def restore(self, clock: bytes, pending: Iterable[tuple[str, int, bytes]]) -> None:
        """Continues from what `take` returned before, as the store has kept it."""
        state = orjson.loads(clock)
        self.now_ms, self.closed_ms, self.counted, self.ignored = state["numbers"]
        self._beats = {(topic, partition): ms for topic, partition, ms in state["beats"]}
        self._least_ms = min(self._beats.values(), default=-1)
        for impression_id, closes_ms, data in pending:
            record = orjson.loads(data)
            if isinstance(record, list):
                self._open[impression_id] = record
            else:
                self._held[impression_id] = [(at_ms, task) for at_ms, task in record["held"]]
            heapq.heappush(self._closing, (closes_ms, impression_id))

    def _clock(self) -> bytes:
        numbers = [self.now_ms, self.closed_ms, self.counted, self.ignored]
        return orjson.dumps({"numbers": numbers, "beats": [[*key, ms] for key, ms in self._beats.items()]})

    def _count(self, record: Record, place: int, ts_ms: int, moves: bool = True) -> None:
        self.counted += 1
        self._adds.add(record, place, ts_ms)
        if moves and ts_ms > self.now_ms:
            self.now_ms = ts_ms

    def _close(self) -> None:
        """Forgets impressions whose window has closed, and waiting actions whose impression does not come any more."""
        while self._closing and self._closing[0][0] <= self.closed_ms:
            closes_ms, impression_id = heapq.heappop(self._closing)
            record, held = self._open.get(impression_id), self._held.get(impression_id)
            if record is not None and record[AT_MS] + self.window_ms <= closes_ms:
                del self._open[impression_id]
            elif held is not None and max(held)[0] <= closes_ms:
                self.ignored += len(self._held.pop(impression_id))


class _Adds:
    """Collects counted events by row, and makes the columns of their adds: one a slot and value of its feature."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots.slots
        self._names = list(dict.fromkeys(slot.by for slot in slots.slots if slot.by not in ("", BY_ITEM)))
        self._records: list[Record] = []
        self._actions: list[int] = []
        self._times: list[int] = []

    def values(self, features: Mapping[str, Any]) -> list[Sequence[int]]:
        """The values of each feature that a slot counts by, each once; none if the impression lacks the feature."""
        found: list[Sequence[int]] = []
        for name in self._names:
            value = features.get(name, ())
            found.append((value,) if isinstance(value, int) else list(dict.fromkeys(value)))
        return found

    def add(self, record: Record, action: int, ts_ms: int) -> None:
        self._records.append(record)
        self._actions.append(action)
        self._times.append(ts_ms)

    def take(self) -> Adds:
        """Returns the adds of the events since the last call."""
        records, n = self._records, len(self._records)
        keys = {"user": _column(records, USER), "item": _column(records, ITEM)}
        times, actions = np.array(self._times, np.int64), np.array(self._actions, np.uint8)
        self._records, self._actions, self._times = [], [], []
        lists = {name: _lists(records, place) for place, name in enumerate(self._names)}
        lists |= {"": (np.arange(n), np.zeros(n, np.int64)), BY_ITEM: (np.arange(n), keys["item"])}
        parts = [
            (np.full(len(rows), place, np.uint16), keys[slot.entity][rows], feature, times[rows], actions[rows])
            for place, slot in enumerate(self._slots)
            for rows, feature in (lists[slot.by],)
        ]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        slot, profile, feature, ts_ms, action = columns
        return Adds(slot, profile, feature, ts_ms, action, np.ones(len(slot), np.int32))


def _column(records: list[Record], place: int) -> Any:
    return np.array([record[place] for record in records], np.int64)


def _lists(records: list[Record], place: int) -> tuple[Any, Any]:
    """The row and the value of each value of one feature. A record may be older than a slot at the end."""
    lists = [record[VALUES][place] if place < len(record[VALUES]) else () for record in records]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    values = np.fromiter(chain.from_iterable(lists), np.int64, int(lengths.sum()))
    return np.repeat(np.arange(len(lists)), lengths), values
