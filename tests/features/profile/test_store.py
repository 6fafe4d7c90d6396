"""The profile store equals a count of the raw events, whatever is folded, and refuses by name what it cannot hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from features.profile.query import Query
from features.profile.store import Profiles
from streaming.slots import DAY_MS, HOUR_MS, MINUTE_MS
from tests.support.profile_oracle import DECLARED, Event, adds, answered, drawn, expected

NOW_MS = 1_790_000_000_000


def add(store: Profiles, *events: Event) -> None:
    with store.writing() as commit:
        commit.add(adds(events))


def test_a_read_equals_the_count_of_the_raw_events(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    queries = [
        Query("user_author", "1h"),
        Query("user_author", "1d", by="click", k=5),
        Query("user_author", "7d", by="time", action="like", k=3),
        Query("user_item", "all", by="time", k=4),
        Query("user_item", "7d", action="like"),
    ]
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        events: list[Event] = []
        for day in range(14):
            now_ms = NOW_MS + day * DAY_MS
            some = drawn(rng, 300, now_ms - DAY_MS, now_ms, 8, 20)
            some += drawn(rng, 30, now_ms - 3 * DAY_MS, now_ms, 8, 20)  # late ones
            add(store, *some)
            events += some
            while store.compact(now_ms):
                pass
            for profile in ([3, 0, 99], [1]):
                for query, answer in zip(queries, store.read("user", profile, queries, now_ms), strict=True):
                    for place, one in enumerate(profile):
                        assert answered(answer, place) == expected(events, query, one, now_ms), (query, one, day)
            everything = Query("item", "all")
            (answer,) = store.read("item", range(8), [everything], now_ms + 30 * MINUTE_MS)
            for profile in range(8):
                assert answered(answer, profile) == expected(events, everything, profile, now_ms + HOUR_MS)
