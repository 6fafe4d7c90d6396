"""Compaction of profiles: what is old is coarsened or dropped, a little at a time, and the disk gets its space back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from features.profile import compaction, database
from features.profile.query import Query
from features.profile.store import Profiles
from streaming.slots import DAY_MS, HOUR_MS, MINUTE_MS
from tests.support.profile_oracle import DECLARED, Event, adds

NOW_MS = 1_790_000_000_000 // DAY_MS * DAY_MS


def add(store: Profiles, *events: Event) -> None:
    with store.writing() as commit:
        commit.add(adds(events))


def stored(folder: Path, query: str) -> Any:
    with closing(sqlite3.connect(folder / database.FILE)) as raw:
        return raw.execute(query).fetchone()[0]


def rows_by_level(folder: Path) -> dict[int, int]:
    with closing(sqlite3.connect(folder / database.FILE)) as raw:
        query = f"SELECT key / {database.LEVEL}, sum(length(rows) - 4) / 24 FROM slices GROUP BY 1"
        return dict(raw.execute(query).fetchall())


def test_slices_coarsen_with_age_until_they_are_dropped(tmp_path: Path) -> None:
    day = [Event(slot, 7, 1, NOW_MS + at_ms, 0, 1) for at_ms in range(0, DAY_MS, 10 * MINUTE_MS) for slot in (0, 1)]
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, *day)
        levels = []
        for age_ms in (0, 3 * HOUR_MS, 30 * HOUR_MS, 3 * DAY_MS, 12 * DAY_MS, 33 * DAY_MS, 34 * DAY_MS):
            while store.compact(NOW_MS + DAY_MS + age_ms):
                pass
            levels.append(rows_by_level(tmp_path))
        everything, week = Query("item", "all"), Query("user_author", "7d")
        assert store.read("item", [7], [everything], NOW_MS + 35 * DAY_MS)[0].counts.tolist() == [[144, 0, 0]]
        assert store.read("user", [7], [week], NOW_MS + 35 * DAY_MS)[0].counts.tolist() == []
    assert levels[0] == {}, "nothing is full and no day has passed"
    # each bucket is swept within a day: after 30 h there are hours and minutes, after 3 days one day of each slot
    assert levels[3] == {2: 2}
    assert levels[4] == {2: 1, 3: 1}
    assert levels[6] == {3: 1}


def test_space_comes_back_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "FREE_PAGES", 10)
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, *[Event(0, profile, feature, NOW_MS, 0, 1) for profile in range(3000) for feature in range(5)])
        store.compact(NOW_MS)
        while store.compact(NOW_MS + DAY_MS):
            pass
        full = stored(tmp_path, "PRAGMA page_count")
        assert stored(tmp_path, "SELECT count(*) FROM profiles") == 3000
        assert store.compact(NOW_MS + 40 * DAY_MS, budget_ms=0), "no time: all is still to do"
        while store.compact(NOW_MS + 40 * DAY_MS):
            pass
        assert stored(tmp_path, "SELECT count(*) FROM profiles") == 0
        left = stored(tmp_path, "PRAGMA page_count")
    assert left < full / 4
    assert (tmp_path / database.FILE).stat().st_size == left * 4096


def test_a_bucket_that_is_full_is_folded(tmp_path: Path) -> None:
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        for second in range(compaction.MOST_PIECES):
            assert stored(tmp_path, "SELECT count(*) FROM slices") == 0
            add(store, Event(0, 7, 1, NOW_MS + second, 0, 1))
        assert not store.compact(NOW_MS)
        assert stored(tmp_path, "SELECT count(*) FROM fresh") == 0
        assert rows_by_level(tmp_path) == {0: 1}
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        for second in range(compaction.MOST_PIECES):
            add(store, Event(0, 7, 1, NOW_MS + second, 0, 1))
    with Profiles(tmp_path, DECLARED, writes=True) as store:  # it knows again how full the buckets are
        store.compact(NOW_MS)
        assert stored(tmp_path, "SELECT count(*) FROM fresh") == 0
        assert store.read("user", [7], [Query("user_author", "1h")], NOW_MS)[0].counts.tolist() == [
            [2 * compaction.MOST_PIECES, 0, 0]
        ]
