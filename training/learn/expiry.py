"""Expiry: removes, in the background, the rows that were not learned from for `expire_ms` of event time.

    expiry = Expiry(tables, {"video": 30 * 86_400_000})
    expiry.ended(tick, newest_event_ms)             # when the tables' clock moves on
    expiry.begin(now_ms)                            # returns at once; a thread evicts
    expiry.end()                                    # before the next cut: all removed keys are among the tombstones

A row's tick is that of its last step, and `tick_times` has the time at which the tick ended: no row leaves early.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from delta_log.fold import thinned

Int64s = npt.NDArray[np.int64]


class Evicts(Protocol):
    """The part of training.cuckoo.Table that expiry uses."""

    def evict(self, tick: Any) -> Any: ...


class Expiry:
    """The `expire_ms` of tables, the times of ticks, and the tombstones: removed keys that no manifest has yet."""

    def __init__(self, tables: Mapping[str, Evicts], expire_ms: Mapping[str, int]) -> None:
        self._tables, self._expire_ms = tables, expire_ms
        self.tick_times: dict[int, int] = {}
        self.tombstones: dict[str, Int64s] = {name: np.empty(0, np.int64) for name in tables}
        self._left: dict[str, list[Int64s]] = {name: [] for name in tables}
        self._thread = ThreadPoolExecutor(1, "expiry")
        self._running: Future[dict[str, Int64s]] | None = None

    def ended(self, tick: int, event_ms: int) -> None:
        """Stores the newest event time at the end of `tick`."""
        self.tick_times = thinned({**self.tick_times, tick: event_ms})

    def due(self, table: str, now_ms: int) -> int:
        """Returns the newest tick that ended `expire_ms` or more before `now_ms`; 0 if none did."""
        until = now_ms - self._expire_ms[table]
        return max((tick for tick, ms in self.tick_times.items() if ms <= until), default=0)

    def begin(self, now_ms: int) -> None:
        """Begins to evict the rows that are due, unless a thread does so already."""
        due = {name: tick for name in self._expire_ms if (tick := self.due(name, now_ms)) > 0}
        if due and self._running is None:
            self._running = self._thread.submit(self._evict, due)

    def _evict(self, due: Mapping[str, int]) -> dict[str, Int64s]:
        return {name: np.asarray(self._tables[name].evict(tick), np.int64) for name, tick in due.items()}

    def left(self, table: str, keys: Int64s) -> None:
        """Takes the keys of rows that left the table for another reason."""
        if len(keys):
            self._left[table].append(keys)

    def end(self) -> int:
        """Waits for the thread. Returns the number of rows that it removed."""
        running, self._running = self._running, None
        evicted = {} if running is None else running.result()
        for name, left in self._left.items():
            if more := [*left, *([evicted[name]] if name in evicted else [])]:
                self.tombstones[name] = np.unique(np.concatenate([self.tombstones[name], *more]))
                left.clear()
        return sum(len(keys) for keys in evicted.values())

    def waiting(self) -> bool:
        """Returns whether there are tombstones."""
        return any(len(keys) for keys in self.tombstones.values())

    def removed(self, table: str, present: Int64s) -> Int64s:
        """Returns the table's tombstones without the keys that have a row again."""
        return np.setdiff1d(self.tombstones[table], present)

    def committed(self, until: Mapping[str, Int64s]) -> None:
        """Drops the tombstones `until`, which a manifest has."""
        for name, keys in until.items():
            self.tombstones[name] = np.setdiff1d(self.tombstones[name], keys)
