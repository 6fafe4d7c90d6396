"""The counters against SQL over what was sent: whatever the interleaving, each event once, windows that slide."""

from __future__ import annotations

import json
import random
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from features.counters import HOUR_MS, MINUTE_MS, Counters
from streaming.source import Exposure

WINDOW_MS, DISORDER_MS = 10 * MINUTE_MS, 1000
START_MS = 1_700_000_000_000
Event = tuple[str, int, Any]
"""(topic, partition, arguments of the call)"""


def made_up(seed: int, n: int = 600, span_ms: int = 9 * 24 * HOUR_MS) -> list[Exposure]:
    """Exposures over nine days, half of them with a judged action, some of which come past the window."""
    draw = random.Random(seed)
    found = []
    for k in range(n):
        ts_ms = START_MS + k * span_ms // n
        outcomes = {"click": ts_ms + draw.randrange(WINDOW_MS * 5 // 4)} if draw.random() < 0.5 else {}
        outcomes |= {"like": ts_ms + 1} if draw.random() < 0.2 else {}
        found.append(Exposure(f"i{k}", draw.randrange(9), draw.randrange(12), ts_ms, {"tab": k % 3}, outcomes))
    return found


def events(exposures: list[Exposure]) -> list[Event]:
    """Of two topics with two partitions each, in event order, with heartbeats that say so."""
    timed: list[tuple[int, Event]] = []
    for k, e in enumerate(exposures):
        timed.append((e.ts_ms, ("shown", k % 2, (e.impression_id, e.user_id, e.item_id, e.ts_ms, e.features["tab"]))))
        timed += [(at, ("action", k % 2, (e.impression_id, task, at))) for task, at in e.outcomes.items()]
    timed.sort(key=lambda pair: pair[0])
    found = []
    for number, (at, event) in enumerate(timed):
        found.append(event)
        if number % 5 == 4:
            found += [("beat", p, (topic, at)) for topic in ("shown", "action") for p in range(2)]
    end = timed[-1][0] + 20 * 24 * HOUR_MS
    return found + [("beat", p, (topic, end)) for topic in ("shown", "action") for p in range(2)]


def feed(counters: Counters, event: Event) -> None:
    what, partition, arguments = event
    if what == "beat":
        counters.clock(arguments[0], partition, arguments[1], 4)
    else:
        getattr(counters, what)(*arguments)


def interleaved(told: list[Event], seed: int) -> list[Event]:
    """Each partition in its own order, the four of them anyhow."""
    queues: dict[tuple[str, int], list[Event]] = {}
    for event in told:
        topic = event[2][0] if event[0] == "beat" else event[0]
        queues.setdefault((topic, event[1]), []).append(event)
    draw, found = random.Random(seed), []
    while queues:
        key = draw.choice(sorted(queues))
        found.append(queues[key].pop(0))
        if not queues[key]:
            del queues[key]
    return found


def by_sql(
    exposures: list[Exposure], now_ms: int, window_ms: int = WINDOW_MS, judged: str = "click"
) -> dict[int, tuple[int, ...]]:
    """item -> shown, positives, and both over 1 h, 1 d, 7 d, at now_ms."""
    done = [(e, e.outcomes[judged]) for e in exposures if judged in e.outcomes]
    kept = [(e.item_id, at) for e, at in done if at <= e.ts_ms + window_ms]
    log = pa.table(
        {
            "item": [e.item_id for e in exposures] + [item for item, _ in kept],
            "moment": [e.ts_ms for e in exposures] + [at for _, at in kept],
            "positive": [0] * len(exposures) + [1] * len(kept),
        }
    )
    windows = ((1, MINUTE_MS * 10**9), (60, MINUTE_MS), (24, HOUR_MS), (168, HOUR_MS))
    sums = ", ".join(
        f"count(*) FILTER (positive = {what} AND moment // {size} > {now_ms} // {size} - {many})"
        for many, size in windows
        for what in (0, 1)
    )
    with duckdb.connect() as connection:
        connection.register("log", log)
        rows = connection.execute(f"SELECT item, {sums} FROM log WHERE moment <= {now_ms} GROUP BY item").fetchall()
    return {item: tuple(counts) for item, *counts in rows}


def rows(table: dict[str, list[Any]], known: dict[int, tuple[int, ...]]) -> None:
    """Puts the rows of a take over those taken before: key -> all columns behind the event time."""
    for key, _, *values in zip(*table.values(), strict=True):
        known[key] = tuple(values)


@pytest.mark.parametrize("seed", [0, 1])
def test_at_any_moment_what_was_handed_out_is_what_sql_counts(seed: int) -> None:
    exposures, known = made_up(seed), {}
    counters, told = Counters("click", WINDOW_MS, DISORDER_MS), events(made_up(seed))
    for number, event in enumerate(told):
        feed(counters, event)
        if event[0] == "beat" and number % 97 == 0:
            rows(counters.take()[1], known)
            sent = [e for e in exposures if e.ts_ms <= counters.now_ms]
            assert known == by_sql(sent, counters.now_ms)
    rows(counters.take()[1], known)
    assert known == by_sql(exposures, counters.now_ms)
    assert all(counts[2:] == (0,) * 6 for counts in known.values())  # twenty days on, no window holds anything


@pytest.mark.parametrize("seed", [2, 3])
def test_neither_interleaving_nor_a_restart_nor_repeats_change_the_counts(seed: int) -> None:
    exposures, results = made_up(seed), []
    told = events(exposures)
    repeated = [event for event in told for _ in range(1 if event[0] == "beat" else 2)]
    for order in (told, repeated, interleaved(told, seed)):
        counters, known, users = Counters("click", WINDOW_MS, DISORDER_MS), {}, {}
        for number, event in enumerate(order):
            feed(counters, event)
            if number == len(order) // 2:
                rows(counters.take()[1], known)
                state = json.loads(json.dumps(counters.state()))
                counters = Counters("click", WINDOW_MS, DISORDER_MS)
                counters.restore(state)
        activity, counted = counters.take()
        rows(counted, known)
        rows(activity, users)
        results.append((known, {user: (u[0], u[1], u[2], sorted(u[3]), u[4:]) for user, u in users.items()}))
    assert results[0][0] == by_sql(exposures, START_MS + 40 * 24 * HOUR_MS)
    assert results[1] == results[0]
    assert results[2][0] == results[0][0]


def test_activity_is_by_tab_and_keeps_the_last_items() -> None:
    counters = Counters("click", WINDOW_MS, DISORDER_MS)
    for k in range(30):
        counters.shown(f"i{k}", 7, k, START_MS + k, k % 2)
    counters.action("i3", "click", START_MS + 100)
    activity, _ = counters.take()
    assert activity == {
        "key": [7], "user_event_ms": [START_MS + 100], "user_shown": [30], "user_positives": [1],
        "user_last_ms": [START_MS + 29], "user_items": [list(range(29, 9, -1))], "user_by": [[0, 1]],
        "user_by_shown": [[15, 15]], "user_by_positives": [[0, 1]],
    }  # fmt: skip


def test_a_row_waits_until_the_clock_has_moved() -> None:
    """No two rows of a key have one event time: a store that keeps the first of two would keep the wrong one."""
    counters = Counters("click", WINDOW_MS, DISORDER_MS)
    counters.shown("a", 1, 1, START_MS, None)
    assert counters.take()[1]["key"] == [1]
    counters.shown("b", 1, 1, START_MS, None)
    assert counters.take()[1]["key"] == []
    counters.shown("c", 2, 2, START_MS + 1, None)
    assert counters.take()[1]["item_shown"] == [2, 1]


def test_rows_of_a_push_that_was_killed_never_hide_what_is_counted_again() -> None:
    """The store refuses an older row. Two partitions come in another order after the kill, with an event more."""
    stored: dict[int, tuple[int, int]] = {}

    def push(counters: Counters) -> None:
        table = counters.take()[1]
        for key, at_ms, shown in zip(table["key"], table["item_event_ms"], table["item_shown"], strict=True):
            if at_ms > stored.get(key, (-1, 0))[0]:
                stored[key] = at_ms, shown

    first = Counters("click", WINDOW_MS, DISORDER_MS)
    committed = json.loads(json.dumps(first.state()))
    first.shown("a", 1, 1, START_MS + 10, None)
    first.shown("b", 1, 2, START_MS + 20, None)
    push(first)
    again = Counters("click", WINDOW_MS, DISORDER_MS)
    again.restore(committed, items={item: at_ms for item, (at_ms, _) in stored.items()})
    again.shown("of the other partition", 1, 1, START_MS + 15, None)
    again.shown("a", 1, 1, START_MS + 10, None)
    push(again)
    again.shown("b", 1, 2, START_MS + 20, None)
    push(again)
    again.clock("shown", 0, START_MS + 21, 1)
    push(again)
    assert {item: shown for item, (_, shown) in stored.items()} == {1: 2, 2: 1}


def test_the_seed_counts_as_the_topics_would() -> None:
    exposures = made_up(4, span_ms=6 * HOUR_MS)
    seeded, known = Counters("click", WINDOW_MS, DISORDER_MS), {}
    seeded.seed(iter(exposures), "tab")
    rows(seeded.take()[1], known)
    for topic in ("shown", "action"):
        for partition in range(2):
            seeded.clock(topic, partition, exposures[-1].ts_ms + 2 * WINDOW_MS, 4)
    rows(seeded.take()[1], known)
    assert known == by_sql(exposures, seeded.now_ms)
