"""Profiles counted from the raw events, one by one, as docs/profiles.md defines them; and made-up events.

It knows nothing of slices: each answer counts all events again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from features.profile.query import Answer, Query
from features.profile.transaction import Adds
from streaming.slots import DAY_MS, HOUR_MS, MINUTE_MS, Slot, Slots

DECLARED = Slots(
    (
        Slot("user_author", "user", by="author"),
        Slot("item", "item", windows=("1h", "1d", "7d", "all"), keep_ms=9 * DAY_MS),
        Slot("user_item", "user", by="item", windows=("7d", "all")),
    ),
    ("shown", "click", "like"),
)
LENGTHS = {"1h": (HOUR_MS, MINUTE_MS), "1d": (DAY_MS, HOUR_MS), "7d": (7 * DAY_MS, DAY_MS), "all": (0, 1)}


class Event(NamedTuple):
    slot: int
    profile: int
    feature: int
    ts_ms: int
    action: int
    count: int


def adds(events: Iterable[Event]) -> Adds:
    """The columns of events."""
    columns = np.array(list(events), np.int64).reshape(-1, 6).T
    return Adds(*columns)


def drawn(rng: np.random.Generator, n: int, begin_ms: int, end_ms: int, profiles: int, features: int) -> list[Event]:
    """Made-up events; one in twenty is an undo."""
    columns = (
        rng.integers(0, len(DECLARED.slots), n),
        rng.zipf(1.2, n) % profiles,
        rng.zipf(1.3, n) % features - 3,
        rng.integers(begin_ms, end_ms, n),
        rng.integers(0, len(DECLARED.actions), n),
        np.where(rng.random(n) < 0.05, -1, rng.integers(1, 3, n)),
    )
    return [Event(*row) for row in np.stack(columns, 1).tolist()]


Expected = list[tuple[int, list[float], list[int]]]
"""Of each feature in order: its id, its counts, its times."""


def expected(events: Iterable[Event], query: Query, profile: int, now_ms: int) -> Expected:
    """The answer to a query for one profile, from the raw events."""
    slot = [s.name for s in DECLARED.slots].index(query.slot)
    length, hop = LENGTHS[query.window]
    begin_ms = (now_ms - length) // hop * hop if length else 0
    end_ms = now_ms - now_ms % MINUTE_MS + MINUTE_MS
    width = len(DECLARED.actions)
    counts: dict[int, list[int]] = defaultdict(lambda: [0] * width)
    faded: dict[int, list[float]] = defaultdict(lambda: [0.0] * width)
    last: dict[int, list[int]] = defaultdict(lambda: [0] * width)
    for e in events:
        if e.slot == slot and e.profile == profile and begin_ms <= e.ts_ms < end_ms:
            counts[e.feature][e.action] += e.count
            last[e.feature][e.action] = max(e.ts_ms, last[e.feature][e.action])
            if query.half_life_ms:
                age_ms = max(0, now_ms - (e.ts_ms - e.ts_ms % hop + hop // 2))
                faded[e.feature][e.action] += e.count * 2.0 ** (-age_ms / query.half_life_ms)
    action = None if query.action is None else DECLARED.actions.index(query.action)
    rows = []
    for feature, plain in counts.items():
        by_time = query.by == "time"
        by = action if by_time else DECLARED.actions.index(query.by)
        judged = max(plain) if by is None else plain[by]
        values: list[Any] = faded[feature] if query.half_life_ms else plain
        times = last[feature]
        rank = (max(times) if by is None else times[by]) if by_time else values[by or 0]
        if any(plain) and (action is None or plain[action] > 0) and (query.k is None or judged > 0):
            rows.append((-rank, feature, values, times))
    rows.sort(key=lambda row: row[:2])
    return [(feature, values, times) for _, feature, values, times in rows[: query.k]]


def answered(answer: Answer, place: int) -> Expected:
    """The part of an answer that is of the profile at `place`."""
    part = slice(answer.offsets[place], answer.offsets[place + 1])
    columns = answer.features[part].tolist(), answer.counts[part].tolist(), answer.last_ms[part].tolist()
    return list(zip(*columns, strict=True))


def same(a: Expected, b: Expected) -> bool:
    """Equal answers; counts that fade are equal to 1e-9."""
    if [(row[0], row[2]) for row in a] != [(row[0], row[2]) for row in b]:
        return False
    return not a or np.allclose([row[1] for row in a], [row[1] for row in b], rtol=1e-9, atol=1e-9)
