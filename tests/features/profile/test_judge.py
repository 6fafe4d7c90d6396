"""The judge against plain loops over what was sent: whatever the order, kills and repeats, each event counts once."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from features.profile.judge import Changes, Judge
from streaming.slots import HOUR_MS, MINUTE_MS, Slot, Slots
from streaming.source import Exposure

WINDOW_MS, DISORDER_MS = 10 * MINUTE_MS, 1000
START_MS = 1_700_000_000_000
SLOTS = Slots(
    (
        Slot("user", "user"),
        Slot("user_tab", "user", by="tab"),
        Slot("user_tags", "user", by="tags"),
        Slot("user_item", "user", by="item"),
        Slot("item", "item"),
    ),
    ("shown", "click", "like"),
)
Event = tuple[str, int, Any]
"""(topic, partition, arguments of the call)"""


def made_up(seed: int, n: int = 600, span_ms: int = 9 * 24 * HOUR_MS) -> list[Exposure]:
    """Exposures over nine days, half of them with a click, some of which come past the window."""
    draw = random.Random(seed)
    found = []
    for k in range(n):
        ts_ms = START_MS + k * span_ms // n
        outcomes = {"click": ts_ms + draw.randrange(WINDOW_MS * 5 // 4)} if draw.random() < 0.5 else {}
        outcomes |= {"like": ts_ms + 1} if draw.random() < 0.2 else {}
        features = {"tab": k % 3, "tags": [k % 5, k % 7, k % 5]} if k % 11 else {}
        found.append(Exposure(f"i{k}", draw.randrange(9), draw.randrange(12), ts_ms, features, outcomes))
    return found


def events(exposures: list[Exposure]) -> list[Event]:
    """Of two topics with two partitions each, in event order, with heartbeats that say so."""
    timed: list[tuple[int, Event]] = []
    for k, e in enumerate(exposures):
        timed.append((e.ts_ms, ("shown", k % 2, (e.impression_id, e.user_id, e.item_id, e.ts_ms, e.features))))
        timed += [(at, ("action", k % 2, (e.impression_id, task, at))) for task, at in e.outcomes.items()]
    timed.sort(key=lambda pair: pair[0])
    found = []
    for number, (at, event) in enumerate(timed):
        found.append(event)
        if number % 5 == 4:
            found += [("beat", p, (topic, at)) for topic in ("shown", "action") for p in range(2)]
    end = timed[-1][0] + 20 * 24 * HOUR_MS
    return found + [("beat", p, (topic, end)) for topic in ("shown", "action") for p in range(2)]


def feed(judge: Judge, event: Event) -> None:
    what, partition, arguments = event
    if what == "beat":
        judge.clock(arguments[0], partition, arguments[1], 4)
    else:
        getattr(judge, what)(*arguments)


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


class Store:
    """What the profile store keeps: the sum of all adds, the pending rows, the clock."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[Any, ...]] = Counter()
        self.pending: dict[str, tuple[int, bytes]] = {}
        self.clock = b""

    def commit(self, changes: Changes) -> None:
        adds = changes.adds
        columns = adds.slot, adds.profile, adds.feature, adds.ts_ms, adds.action, adds.count
        for *key, count in zip(*(column.tolist() for column in columns), strict=True):
            self.counts[tuple(key)] += count
        self.pending |= {key: (closes_ms, data) for key, closes_ms, data in changes.pending}
        self.pending = {key: row for key, row in self.pending.items() if row[0] > changes.closed_ms}
        self.clock = changes.clock

    def judge(self) -> Judge:
        judge = Judge(SLOTS, WINDOW_MS, DISORDER_MS)
        if self.clock:
            judge.restore(self.clock, [(key, *row) for key, row in self.pending.items()])
        return judge


def expected(exposures: list[Exposure]) -> Counter[tuple[Any, ...]]:
    """(slot, profile, feature, time, action) -> count, by loops over the exposures."""
    counts: Counter[tuple[Any, ...]] = Counter()
    for e in exposures:
        kept = [(task, at) for task, at in e.outcomes.items() if at <= e.ts_ms + WINDOW_MS]
        for action, at in [("shown", e.ts_ms), *kept]:
            tail = at, SLOTS.actions.index(action)
            counts[0, e.user_id, 0, *tail] += 1
            if e.features:
                counts[1, e.user_id, e.features["tab"], *tail] += 1
            for tag in set(e.features.get("tags", ())):
                counts[2, e.user_id, tag, *tail] += 1
            counts[3, e.user_id, e.item_id, *tail] += 1
            counts[4, e.item_id, 0, *tail] += 1
    return counts


@pytest.mark.parametrize("seed", [0, 1])
def test_neither_order_nor_kills_nor_repeats_change_what_is_counted(seed: int) -> None:
    exposures = made_up(seed, 400)
    told = events(exposures)
    repeated = [event for event in told for _ in range(1 if event[0] == "beat" else 2)]
    for order in (told, repeated, interleaved(told, seed)):
        store, draw, at = Store(), random.Random(seed), 0
        while at < len(order):  # each round ends with a kill: what was not committed is told again
            judge = store.judge()
            committed = at
            for number in range(at, min(len(order), at + draw.randrange(1, 400))):
                feed(judge, order[number])
                if draw.random() < 0.05 or number == len(order) - 1:
                    store.commit(judge.take())
                    committed = number + 1
            at = committed
        assert store.counts == expected(exposures)
        assert not store.pending, "twenty days on, no window is open"


def test_of_each_task_the_first_action_within_the_window_counts() -> None:
    judge = Judge(SLOTS, WINDOW_MS, DISORDER_MS)
    judge.action("a", "like", START_MS + 9)  # before its impression
    judge.shown("a", 1, 2, START_MS, {})
    for at_ms in (START_MS + 5, START_MS + 6, START_MS + WINDOW_MS + 1, START_MS - 1):
        judge.action("a", "click", at_ms)
    judge.shown("a", 1, 2, START_MS, {})
    adds = judge.take().adds
    assert adds.ts_ms[adds.slot == 0].tolist() == [START_MS, START_MS + 9, START_MS + 5]
    assert adds.action[adds.slot == 4].tolist() == [0, 2, 1]
    assert (judge.counted, judge.ignored) == (3, 4)


def test_what_is_late_does_not_count_and_waiting_actions_are_dropped() -> None:
    judge = Judge(SLOTS, WINDOW_MS, DISORDER_MS)
    judge.action("never shown", "click", START_MS)
    assert [key for key, *_ in judge.take().pending] == ["never shown"]
    judge.clock("shown", 0, START_MS + DISORDER_MS + 1, 1)
    assert judge.take().closed_ms == START_MS
    judge.shown("late", 1, 2, START_MS, {})
    judge.action("later", "click", START_MS)
    changes = judge.take()
    assert (len(changes.adds.slot), changes.pending, judge.ignored) == (0, [], 3)


def test_the_history_counts_as_the_topics_would() -> None:
    exposures, store = made_up(4), Store()
    judge = store.judge()
    judge.seed(exposures)
    store.commit(judge.take())
    assert store.counts == expected(exposures) and not store.pending
    assert judge.now_ms == exposures[-1].ts_ms
