"""Counts events of the topics: recent activity of users, and items over one hour, one day and seven days.

The counters are pure state and need no service. They count each impression once, by its id. They ignore late and
repeated impressions, as the join does. Of the judged actions they count the first one within the window. The state is
plain containers, so that it is committed together with the positions of the topics.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Any

from features.plan import ACTIVITY, COUNTERS
from streaming.source import Exposure

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
WINDOWS = {"1h": (MINUTE_MS, 60), "1d": (HOUR_MS, 24), "7d": (HOUR_MS, 168)}
"""Name -> (length of a bucket, number of buckets)."""
RECENT = 20
"""Number of a user's last items that `activity` keeps."""

Table = dict[str, list[Any]]
Pushed = dict[int, int]
"""Key -> the event time of its newest pushed row."""


class Counters:
    """Counters of users and items. Events may arrive in any order; `now_ms` is the newest event time.

    `shown` and `action` take events, `clock` the event time of a partition. `take` returns the rows that changed, at
    `now_ms`.
    """

    def __init__(self, judged: str, window_ms: int, max_disorder_ms: int) -> None:
        self.judged, self.window_ms, self.max_disorder_ms = judged, window_ms, max_disorder_ms
        self.now_ms = self.closed_ms = -1
        self.counted = self.ignored = 0
        self._pushed: tuple[Pushed, Pushed] = {}, {}
        self._beats: dict[tuple[str, int], int] = {}
        # user -> [shown, positives, last_ms, items, {by: [shown, positives]}, pushed at]
        self._users: dict[int, list[Any]] = {}
        # item -> [shown, positives, {bucket size: {bucket: [shown, positives]}}, pushed at]
        self._items: dict[int, list[Any]] = {}
        # impression -> [user, item, ts_ms, by, has its positive]; and actions that came before their impression
        self._open: dict[str, list[Any]] = {}
        self._held: dict[str, list[int]] = {}
        self._closing: deque[tuple[int, str]] = deque()
        self._due: dict[tuple[int, int], set[int]] = {}
        self._dirty_users: set[int] = set()
        self._dirty_items: set[int] = set()

    def shown(self, impression_id: str, user: int, item: int, ts_ms: int, by: int | None) -> None:
        """Counts an impression. Ignores one that is late or repeated."""
        if impression_id in self._open or ts_ms <= self.closed_ms:
            self.ignored += 1
            return
        self._count(user, item, ts_ms, by, 0)
        self._open[impression_id] = [user, item, ts_ms, by, False]
        self._closing.append((ts_ms + self.window_ms, impression_id))
        for at_ms in sorted(self._held.pop(impression_id, ())):
            self.action(impression_id, self.judged, at_ms)

    def action(self, impression_id: str, task: str, ts_ms: int) -> None:
        """Counts the first judged action within an impression's window. Holds one whose impression is not there yet."""
        if task != self.judged:
            return
        shown = self._open.get(impression_id)
        if shown is None:
            if ts_ms > self.closed_ms:
                self._held.setdefault(impression_id, []).append(ts_ms)
            else:
                self.ignored += 1
            return
        user, item, shown_ms, by, done = shown
        if done or not shown_ms <= ts_ms <= shown_ms + self.window_ms:
            self.ignored += 1
            return
        shown[4] = True
        self._count(user, item, ts_ms, by, 1)

    def clock(self, topic: str, partition: int, ms: int, partitions: int) -> None:
        """Moves the event time of one of `partitions` partitions. Before that of the slowest one, less the disorder, no
        event arrives any more; the join counts it in the same way."""
        key = topic, partition
        self._beats[key] = max(ms, self._beats.get(key, -1))
        if len(self._beats) < partitions:
            return
        least = min(self._beats.values())
        self.closed_ms = max(self.closed_ms, least - self.max_disorder_ms - 1)
        self._advance(least)
        while self._closing and self._closing[0][0] <= self.closed_ms:
            self._open.pop(self._closing.popleft()[1], None)
        for impression_id in [k for k, held in self._held.items() if max(held) <= self.closed_ms]:
            self.ignored += len(self._held.pop(impression_id))

    def time_of(self, topic: str, partition: int) -> int | None:
        """The event time of a partition; None before the first call of `clock` for it."""
        return self._beats.get((topic, partition))

    def seed(self, exposures: Iterable[Exposure], by: str) -> None:
        """Counts the source's history. Actions after the last exposure do not move the clock."""
        waiting: list[tuple[int, int, int, int | None]] = []
        for e in exposures:
            value = e.features.get(by) if by else None
            while waiting and waiting[0][0] <= e.ts_ms:
                at_ms, user, item, then = heapq.heappop(waiting)
                self._count(user, item, at_ms, then, 1)
            self._count(e.user_id, e.item_id, e.ts_ms, value, 0)
            done_ms = e.outcomes.get(self.judged)
            if done_ms is not None and done_ms <= e.ts_ms + self.window_ms:
                heapq.heappush(waiting, (done_ms, e.user_id, e.item_id, value))
        for at_ms, user, item, then in waiting:
            self._count(user, item, at_ms, then, 1, moves=False)

    def take(self) -> tuple[Table, Table]:
        """Returns the rows of activity and counters that changed since the last call; their keys are in column `key`.

        A row has the time `now_ms`. A row that was already taken at this time waits until the clock has moved, so that
        no two rows of a key have the same event time.
        """
        activity: Table = {name: [] for name in ("key", *(c.name for c in ACTIVITY))}
        counters: Table = {name: [] for name in ("key", *(c.name for c in COUNTERS))}
        for user in sorted(k for k in self._dirty_users if self._users[k][5] < self.now_ms):
            shown, positives, last_ms, items, by, _ = self._users[user]
            values = sorted(by)
            counts = [[by[value][kind] for value in values] for kind in (0, 1)]
            row = (user, self.now_ms, shown, positives, last_ms, list(items), values, *counts)
            for column, value in zip(activity.values(), row, strict=True):
                column.append(value)
            self._users[user][5] = self.now_ms
            self._dirty_users.discard(user)
        for item in sorted(k for k in self._dirty_items if self._items[k][3] < self.now_ms):
            shown, positives, buckets, _ = self._items[item]
            row = (item, self.now_ms, shown, positives, *self._windows(buckets))
            for column, value in zip(counters.values(), row, strict=True):
                column.append(value)
            self._items[item][3] = self.now_ms
            self._dirty_items.discard(item)
        return activity, counters

    def state(self) -> dict[str, Any]:
        """Returns the whole state as plain JSON, for a commit; `restore` reads it."""
        return {
            "numbers": [self.now_ms, self.closed_ms, self.counted, self.ignored],
            "beats": [[*key, ms] for key, ms in self._beats.items()],
            "users": [[k, *u[:3], list(u[3]), list(u[4].items()), u[5]] for k, u in self._users.items()],
            "items": [[k, *i[:2], [[size, list(b.items())] for size, b in i[2].items()], i[3]]
                      for k, i in self._items.items()],
            "open": self._open,
            "held": self._held,
            "closing": list(self._closing),
            "due": [[*key, sorted(items)] for key, items in self._due.items()],
            "dirty": [sorted(self._dirty_users), sorted(self._dirty_items)],
        }  # fmt: skip

    def restore(self, state: dict[str, Any], users: Pushed | None = None, items: Pushed | None = None) -> None:
        """Continues from a commit. `users` and `items` are the newest event times of the rows pushed after it.

        Such a key waits until the clock has passed its row, because the store refuses an older one.
        """
        self._pushed = users or {}, items or {}
        self.now_ms, self.closed_ms, self.counted, self.ignored = state["numbers"]
        self._beats = {(topic, partition): ms for topic, partition, ms in state["beats"]}
        self._users = {k: [*u[:3], deque(u[3], RECENT), dict(u[4]), u[5]] for k, *u in state["users"]}
        self._items = {k: [*i[:2], {size: dict(b) for size, b in i[2]}, i[3]] for k, *i in state["items"]}
        self._open, self._held = state["open"], state["held"]
        self._closing = deque((ms, impression_id) for ms, impression_id in state["closing"])
        self._due = {(size, bucket): set(items) for size, bucket, items in state["due"]}
        self._dirty_users, self._dirty_items = map(set, state["dirty"])
        for rows, pushed, place in ((self._users, self._pushed[0], 5), (self._items, self._pushed[1], 3)):
            for key in rows.keys() & pushed.keys():
                rows[key][place] = max(rows[key][place], pushed[key])

    def _count(self, user: int, item: int, ts_ms: int, by: int | None, kind: int, moves: bool = True) -> None:
        """Counts one impression (`kind` is 0) or one judged action (1)."""
        self.counted += 1
        of_user = self._users.setdefault(user, [0, 0, -1, deque(maxlen=RECENT), {}, self._pushed[0].get(user, -1)])
        of_user[kind] += 1
        if by is not None:
            of_user[4].setdefault(by, [0, 0])[kind] += 1
        if kind == 0:
            of_user[2] = max(of_user[2], ts_ms)
            of_user[3].appendleft(item)
        of_item = self._items.setdefault(item, [0, 0, {MINUTE_MS: {}, HOUR_MS: {}}, self._pushed[1].get(item, -1)])
        of_item[kind] += 1
        for size, buckets in of_item[2].items():
            bucket = ts_ms // size
            if bucket not in buckets:
                buckets[bucket] = [0, 0]
                self._due.setdefault((size, bucket), set()).add(item)
                for windowed, many in WINDOWS.values():
                    if windowed == size:
                        self._due.setdefault((size, bucket + many), set()).add(item)
            buckets[bucket][kind] += 1
        self._dirty_users.add(user)
        self._dirty_items.add(item)
        if moves:
            self._advance(ts_ms)

    def _advance(self, ms: int) -> None:
        """Moves the clock. An item changes when one of its buckets enters or leaves a window."""
        if ms <= self.now_ms:
            return
        before, self.now_ms = self.now_ms, ms
        if all(before // size == ms // size for size in (MINUTE_MS, HOUR_MS)):
            return
        for key in [k for k in self._due if k[1] <= ms // k[0]]:
            self._dirty_items |= self._due.pop(key)

    def _windows(self, buckets: dict[int, dict[int, list[int]]]) -> list[int]:
        """Returns the counts of each window at `now_ms`, and drops buckets that are in no window any more."""
        counts = []
        for size, many in WINDOWS.values():
            first = self.now_ms // size - many + 1
            inside = [count for bucket, count in buckets[size].items() if first <= bucket <= self.now_ms // size]
            counts += [sum(count[kind] for count in inside) for kind in (0, 1)]
        for size, many in ((MINUTE_MS, 60), (HOUR_MS, 168)):
            for bucket in [b for b in buckets[size] if b <= self.now_ms // size - many]:
                del buckets[size][bucket]
        return counts
