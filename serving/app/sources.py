"""Sources of candidates: which items a user's list is chosen from, before the model ranks them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from features.store import Features

REFRESH_S = 2.0
"""A list of the store is read again when it is asked for and older than this."""


class Candidate(NamedTuple):
    """An item, the name of its source, and the probability with which the source drew it (1: no draw)."""

    item_id: int
    source: str
    probability: float


class Source(Protocol):
    """Gives up to n candidates for a user, the best first."""

    def candidates(self, user_id: int, n: int) -> Sequence[Candidate]: ...


class Listed:
    """A list that is the same for every user. A thread reads it again, so that no request but the first waits.

    `read` returns the items, the best first. It gets the most items that anybody has asked for.
    """

    def __init__(self, name: str, read: Callable[[int], Sequence[int]]) -> None:
        self._name, self._read = name, read
        self._items: list[Candidate] = []
        self._n, self._read_at, self._lock = 0, -REFRESH_S, threading.Lock()

    def candidates(self, user_id: int, n: int) -> Sequence[Candidate]:
        if n > self._n or not self._items:
            self._refresh(max(n, self._n))
        elif time.monotonic() - self._read_at > REFRESH_S and not self._lock.locked():
            threading.Thread(target=self._refresh, args=(self._n,), name=self._name, daemon=True).start()
        return self._items[:n]

    def _refresh(self, n: int) -> None:
        with self._lock:
            if time.monotonic() - self._read_at > REFRESH_S or n > self._n:
                self._items = [Candidate(item, self._name, 1.0) for item in self._read(n)]
                self._n, self._read_at = n, time.monotonic()


class Popular(Listed):
    """The items that were shown most lately (`Features.popular`). `now_ms` is the counters' event time, -1 if empty."""

    def __init__(self, store: Features) -> None:
        super().__init__("popular", self._popular)
        self._store, self.now_ms = store, -1

    def _popular(self, n: int) -> Sequence[int]:
        items, self.now_ms = self._store.popular(n)
        return items


class Newest(Listed):
    """The items whose attributes are newest, from the view `video`: a new platform has shown nothing yet."""

    def __init__(self, store: Features) -> None:
        super().__init__("newest", self._newest)
        self._store = store

    def _newest(self, n: int) -> Sequence[int]:
        if "video" not in self._store.plan.columns:
            return []
        key = self._store.plan.key("video")
        rows = self._store.offline.newest("video").select([key, "event_timestamp"])
        order = [("event_timestamp", "descending"), (key, "ascending")]
        items: list[int] = rows.sort_by(order)[key][:n].to_pylist()
        return items


def gather(sources: Sequence[Source], user_id: int, n: int) -> list[Candidate]:
    """Up to n candidates of the sources in their order, each item once."""
    found: dict[int, Candidate] = {}
    for source in sources:
        if len(found) < n:
            for candidate in source.candidates(user_id, n):
                found.setdefault(candidate.item_id, candidate)
    return list(found.values())[:n]
