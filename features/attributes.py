"""Attributes of users and items from the topics `users` and `items`, merged into the rows of the feature store.

    attributes = Attributes(store)
    attributes.take("items", {"item_id": 9, "ts_ms": ts_ms, "attributes": {"category": 4}})
    attributes.push()                                   # {"video": 1}: one row was written

Of each attribute the newest `ts_ms` wins, in whatever order the messages come; of equal times the later message. So
each logged row has the time of each attribute, in a column of the log that Feast does not know. A row is complete. It
has null where nobody sent a value, and a read gives the default there. What the source's tables have is merged by the
same rule. A message that forgets a user is a row without values: it takes the place of all older ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from features.offline import TIMES
from features.plan import TS
from features.store import Features, now_ms
from streaming.hashing import text_id
from streaming.topics import FORGET, KEYS
from streaming.views import VIEWS, Column

BATCH_ROWS = 5000
"""The most rows of one write: readers wait meanwhile."""


class Attributes:
    """The messages that were taken and are in no row yet. They have no other state: all times are in the log."""

    def __init__(self, store: Features) -> None:
        self._store = store
        self._taken: dict[str, dict[int, list[Mapping[str, Any]]]] = {view: defaultdict(list) for view in TIMES}

    def take(self, topic: str, event: Mapping[str, Any]) -> None:
        """Takes a message that the contract allows."""
        view = VIEWS[topic]
        if event.get("attributes") or FORGET in event and view in self._store.plan.columns:
            self._taken[view][event[KEYS[topic]]].append(event)

    def push(self) -> dict[str, int]:
        """Writes the rows that the taken messages change. Returns the number of each view."""
        written: dict[str, int] = {}
        for view, taken in self._taken.items():
            keys = sorted(taken)
            for first in range(0, len(keys), BATCH_ROWS):
                some = keys[first : first + BATCH_ROWS]
                rows = rows_of(self._store, view, some)
                for key, row in rows.items():
                    for event in taken[key]:
                        if FORGET in event:
                            row.forget(event[FORGET])
                        else:
                            row.upsert(event[TS], event["attributes"])
                if changed := write(self._store, view, rows):
                    written[view] = written.get(view, 0) + changed
                if forgotten := [key for key in some if any(FORGET in event for event in taken[key])]:
                    self._store.offline.forget(view, forgotten)
            taken.clear()
        return written


class Row:
    """A row of `profile` or `video`, and the time of each attribute. `base_ms`: of those that no message brought.

    `has_messages`: whether a message has ever changed it.
    """

    def __init__(self, columns: Iterable[Column], logged: Mapping[str, Any] | None, times: str) -> None:
        self._kinds = {column.name: column.kind for column in columns}
        self.values: dict[str, Any] = {name: logged[name] if logged else None for name in self._kinds}
        self.event_ms = round(logged["event_timestamp"].timestamp() * 1000) if logged else None
        self.has_messages = bool(logged and logged[times])
        packed = logged[times] if logged and logged[times] else [-1 if self.event_ms is None else self.event_ms]
        self.base_ms, self._times = packed[0], dict(zip(packed[1::2], packed[2::2], strict=True))
        self._before = (dict(self.values), self.times)
        self._newest_ms = -1

    @property
    def times(self) -> list[int]:
        """`base_ms`, then the id of each attribute's name and its time. Names do not move when the source grows."""
        return [self.base_ms, *(number for pair in sorted(self._times.items()) for number in pair)]

    @property
    def changed(self) -> bool:
        return (self.values, self.times) != self._before

    def upsert(self, ts_ms: int, attributes: Mapping[str, Any]) -> None:
        """Merges a message. An attribute that it leaves out keeps its value and time."""
        for name, value in attributes.items():
            if ts_ms >= self._times.get(text_id(name), self.base_ms):
                self.values[name] = float(value) if self._kinds[name] == "number" else value
                self._times[text_id(name)] = ts_ms
                self._newest_ms = max(self._newest_ms, ts_ms)

    def replace(self, ts_ms: int, values: Mapping[str, Any]) -> None:
        """Merges a row of the source's table, which has all attributes. It corrects an older row of the same time."""
        for name in self.values:
            at = self._times.get(text_id(name))
            if ts_ms > at if at is not None else ts_ms >= self.base_ms:
                self.values[name] = values[name]
                self._times.pop(text_id(name), None)
        self.base_ms = max(self.base_ms, ts_ms)
        self._newest_ms = max(self._newest_ms, ts_ms)

    def forget(self, at_ms: int) -> None:
        """Takes the values of all attributes up to a time. An older message does not bring them back."""
        self.replace(at_ms + 1, dict.fromkeys(self.values))

    def next_event_ms(self, now: int) -> int:
        """The event time of the merged row: later than the stored one, so that each online store takes it.

        It is not later than `now` for a message that is ahead of the clock, so that the offline join finds the row when
        it is readable.
        """
        at = min(self._newest_ms, now)
        return at if self.event_ms is None else max(at, self.event_ms + 1)


def rows_of(store: Features, view: str, keys: list[int]) -> dict[int, Row]:
    """The newest row of each key; without values if there is none."""
    logged = {row[store.plan.key(view)]: row for row in store.offline.newest(view, keys=keys).to_pylist()}
    return {key: Row(store.plan.columns[view], logged.get(key), TIMES[view]) for key in keys}


def write(store: Features, view: str, rows: Mapping[int, Row]) -> int:
    """Writes the rows that have changed, and returns their number."""
    now, changed = now_ms(), {key: row for key, row in rows.items() if row.changed}
    columns: dict[str, list[Any]] = {
        store.plan.key(view): list(changed),
        **{column.name: [row.values[column.name] for row in changed.values()] for column in store.plan.columns[view]},
        TIMES[view]: [row.times for row in changed.values()],
        TS: [row.next_event_ms(now) for row in changed.values()],
    }
    store.write({view: columns})
    return len(changed)
