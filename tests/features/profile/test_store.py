"""The profile store equals a count of the raw events, whatever is folded, and refuses by name what it cannot hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from features.profile.query import Query
from features.profile.store import Profiles
from streaming.slots import DAY_MS, HOUR_MS, MINUTE_MS
from tests.support.profile_oracle import DECLARED, Event, adds, answered, drawn, expected, same

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
        Query("user_author", "1d", by="click", half_life_ms=5 * HOUR_MS),
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
                        assert same(answered(answer, place), expected(events, query, one, now_ms)), (query, one, day)
            everything = Query("item", "all")
            (answer,) = store.read("item", range(8), [everything], now_ms + 30 * MINUTE_MS)
            for profile in range(8):
                assert answered(answer, profile) == expected(events, everything, profile, now_ms + HOUR_MS)


def test_counts_fade_from_the_middle_of_their_hop(tmp_path: Path) -> None:
    begin_ms = NOW_MS // HOUR_MS * HOUR_MS
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, *[Event(0, 7, hours, begin_ms - hours * HOUR_MS + 7, 1, 4) for hours in (0, 2)])
        for after_ms, newer, older in ((HOUR_MS // 2, 4, 1), (HOUR_MS * 3 // 2, 2, 0.5), (0, 4, 4 * 2**-1.5)):
            query = Query("user_author", "1d", by="click", half_life_ms=HOUR_MS)
            (answer,) = store.read("user", [7], [query], begin_ms + after_ms)
            assert answer.features.tolist() == [0, 2]
            np.testing.assert_allclose(answer.counts[:, 1], [newer, older], rtol=1e-12)


def test_profiles_of_one_bucket_are_told_apart(tmp_path: Path) -> None:
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, *[Event(0, profile, profile, NOW_MS, 0, 1) for profile in range(5000)])
        asked = [-5, *range(10)]
        (answer,) = store.read("user", asked, [Query("user_author", "1h")], NOW_MS)
    assert answer.features.tolist() == asked[1:]
    assert answer.offsets.tolist() == [0, *range(11)]


def test_an_hour_empties_by_itself_and_a_reader_sees_what_is_committed(tmp_path: Path) -> None:
    now_ms = NOW_MS // MINUTE_MS * MINUTE_MS + 5_000
    with Profiles(tmp_path, DECLARED, writes=True) as store, Profiles(tmp_path, DECLARED) as reader:
        with store.writing() as commit:
            commit.add(adds([Event(0, 7, 93, now_ms, 1, 1), Event(0, 7, 94, now_ms + 50_000, 0, 1)]))
            assert counts(reader, now_ms) == {}
        assert counts(reader, now_ms) == {93: [0, 1, 0], 94: [1, 0, 0]}, "to the end of the minute"
        assert counts(reader, now_ms + HOUR_MS) == {93: [0, 1, 0], 94: [1, 0, 0]}
        while store.compact(now_ms + HOUR_MS):
            pass
        assert counts(reader, now_ms + 61 * MINUTE_MS) == {}
        assert counts(reader, now_ms + 61 * MINUTE_MS, "1d") == {93: [0, 1, 0], 94: [1, 0, 0]}


def counts(store: Profiles, now_ms: int, window: str = "1h", profile: int = 7) -> dict[int, list[int]]:
    (answer,) = store.read("user", [profile], [Query("user_author", window)], now_ms)
    return dict(zip(answer.features.tolist(), answer.counts.tolist(), strict=True))


def test_a_commit_is_whole_or_not_at_all(tmp_path: Path) -> None:
    first, second = ("a", NOW_MS + 5, b"1"), ("b\u00e9", NOW_MS + 9, b"")
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        with store.writing() as commit:
            commit.add(adds([Event(0, 7, 93, NOW_MS, 0, 1)]))
            commit.positions({"impressions": {"offsets": {"0": 5}}, "actions": {"offsets": {}}})
            commit.pend([first, second])
            commit.note("clock", b"12")
        with pytest.raises(KeyError), store.writing() as commit:
            commit.add(adds([Event(0, 7, 93, NOW_MS, 0, 1)]))
            commit.positions({"impressions": {"offsets": {"0": 6}}})
            commit.settle(NOW_MS + 9)
            commit.note("clock", b"13")
            commit.flush()
            raise KeyError
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        assert counts(store, NOW_MS) == {93: [1, 0, 0]}
        assert store.positions() == {"impressions": {"offsets": {"0": 5}}, "actions": {"offsets": {}}}
        assert list(store.pending()) == [first, second]
        assert (store.noted("clock"), store.noted("other")) == (b"12", None)
        with store.writing() as commit:
            commit.positions({"actions": {"offsets": {"0": 1}}})
            commit.pend([("a", NOW_MS + 7, b"2")])
            commit.settle(NOW_MS + 5)
        assert list(store.pending()) == [("a", NOW_MS + 7, b"2"), second]
        assert store.positions() == {"impressions": {"offsets": {"0": 5}}, "actions": {"offsets": {"0": 1}}}
        with store.writing() as commit:
            commit.settle(NOW_MS + 9)
        assert list(store.pending()) == []


def test_a_forgotten_profile_does_not_come_back(tmp_path: Path) -> None:
    log = [Event(0, 7, 93, NOW_MS - age_ms, 0, 1) for age_ms in (0, 1000, HOUR_MS, 9 * HOUR_MS, 3 * DAY_MS)]
    other = [Event(1, 7, 0, NOW_MS, 0, 1), Event(0, 8, 93, NOW_MS, 0, 1)]
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, *log[1:])
        while store.compact(NOW_MS - 2 * DAY_MS) or store.compact(NOW_MS - DAY_MS):
            pass
        add(store, *log, *other)
        with store.writing() as commit:
            commit.forget("user", 7, NOW_MS)
        assert counts(store, NOW_MS, "7d") == {}
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, *log, Event(0, 7, 94, NOW_MS + 1, 2, 1))
        assert counts(store, NOW_MS, "7d") == {94: [0, 0, 1]}
        assert counts(store, NOW_MS, "7d", profile=8) == {93: [1, 0, 0]}
        (answer,) = store.read("item", [7], [Query("item", "1h")], NOW_MS)
        assert answer.counts.tolist() == [[1, 0, 0]]
        with pytest.raises(InputError, match="entity is 'shop'; allowed is user or item"), store.writing() as commit:
            commit.forget("shop", 7, NOW_MS)


def test_ids_and_sums_of_any_size(tmp_path: Path) -> None:
    low, high = -(2**63), 2**63 - 1
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, *[Event(0, profile, -profile - 1, NOW_MS, 0, 2**31 - 1) for profile in (low, high)] * 3)
        add(store, *[Event(0, 5, feature, NOW_MS, 0, 1) for feature in range(100_000)])
        while store.compact(NOW_MS + 2 * DAY_MS):
            pass
        (answer,) = store.read("user", [high, 5, low, high], [Query("user_author", "7d")], NOW_MS + 2 * DAY_MS)
    assert answer.offsets.tolist() == [0, 1, 100_001, 100_002, 100_003]
    assert answer.features[[0, 100_001, 100_002]].tolist() == [low, high, low]
    assert answer.counts[[0, 100_001, 100_002], 0].tolist() == [3 * (2**31 - 1)] * 3
    assert answer.features[1:100_001].tolist() == list(range(100_000))


@pytest.mark.parametrize(
    "event, message",
    [
        (Event(3, 7, 1, NOW_MS, 0, 1), "slot is 3; allowed is 0 to 2"),
        (Event(0, 7, 1, NOW_MS, 3, 1), "action is 3; allowed is 0 to 2"),
        (Event(0, 7, 1, NOW_MS, 0, 2**31), f"count is {2**31}; allowed is -{2**31 - 1} to {2**31 - 1}"),
        (Event(0, 7, 1, -1, 0, 1), f"ts_ms is -1; allowed is 0 to {NOW_MS + MINUTE_MS}"),
        (Event(0, 7, 1, NOW_MS + MINUTE_MS + 1, 0, 1), f"allowed is 0 to {NOW_MS + MINUTE_MS}"),
    ],
)
def test_an_add_that_is_not_allowed(tmp_path: Path, event: Event, message: str) -> None:
    with Profiles(tmp_path, DECLARED, writes=True) as store, store.writing() as commit:
        with pytest.raises(InputError, match=message):
            commit.add(adds([Event(0, 7, 1, NOW_MS, 0, 1), event]), NOW_MS)


@pytest.mark.parametrize(
    "entity, query, message",
    [
        ("shop", Query("item", "1h"), "entity is 'shop'; allowed is user or item"),
        ("user", Query("item", "1h"), "slot is 'item'; allowed is user_author or user_item of the user"),
        ("item", Query("item", "2h"), "slot item: window is '2h'; allowed is 1h, 1d, 7d or all"),
        ("item", Query("item", "1h", by="buy"), "slot item: by is 'buy'; allowed is time, shown, click or like"),
        ("item", Query("item", "1h", action="time"), "slot item: action is 'time'; allowed is shown, click or like"),
        ("item", Query("item", "1h", k=0), "slot item: k is 0; allowed is None or a whole number from 1 on"),
        ("item", Query("item", "all", half_life_ms=5), "half_life_ms is given for window all; allowed is 1h, 1d or 7d"),
    ],
)
def test_a_query_that_the_slots_do_not_allow(tmp_path: Path, entity: str, query: Query, message: str) -> None:
    with Profiles(tmp_path, DECLARED, writes=True) as store, pytest.raises(InputError, match=message):
        store.read(entity, [1], [query], NOW_MS)


def test_a_read_far_behind_the_compaction_is_refused(tmp_path: Path) -> None:
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        store.compact(NOW_MS)
        assert counts(store, NOW_MS - HOUR_MS) == {}
        with pytest.raises(InputError, match=f"now_ms is {NOW_MS - HOUR_MS - 1}; allowed is {NOW_MS - HOUR_MS} or"):
            counts(store, NOW_MS - HOUR_MS - 1)


def test_one_process_writes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"profiles\.sqlite is missing: the feature push makes it"):
        Profiles(tmp_path, DECLARED)
    with Profiles(tmp_path, DECLARED, writes=True), pytest.raises(InputError, match="held by process"):
        Profiles(tmp_path, DECLARED, writes=True)
    with Profiles(tmp_path, DECLARED) as reader, pytest.raises(InputError, match="opened to read"), reader.writing():
        pass
