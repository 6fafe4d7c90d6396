"""The lists of the most shown items, against a count of the events themselves."""

from __future__ import annotations

import numpy as np
import pytest

from features import popular
from features.popular import Popular, listed
from streaming.slots import DAY_MS, HOUR_MS, WINDOWS
from tests.support.profile_oracle import LENGTHS

NOW_MS = 1_790_000_000_000


def by_hand(events: list[tuple[int, int]], now_ms: int, window: str, limit: int) -> list[int]:
    """Counts all events again: by the window, then by the wider ones, then by id."""
    wider = list(LENGTHS)[list(LENGTHS).index(window) :]
    counts = {item: [0] * len(wider) for item, _ in events}
    for item, ts_ms in events:
        for k, name in enumerate(wider):
            length, hop = LENGTHS[name]
            counts[item][k] += not length or ts_ms >= (now_ms - length) // hop * hop
    return sorted(counts, key=lambda item: ([-count for count in counts[item]], item))[:limit]


@pytest.mark.parametrize("at_once", [5, 50_000])
@pytest.mark.parametrize("most", [7, 1000])
def test_the_lists_equal_a_count_of_the_events(at_once: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(popular, "_AT_ONCE", at_once)
    monkeypatch.setattr(popular, "MOST", most)
    rng, lists, events = np.random.default_rng(most + at_once), Popular(), []
    now_ms = NOW_MS
    for step_ms in (0, 1000, 50_000, 20 * 60_000, 3 * HOUR_MS, 20 * HOUR_MS, 5 * DAY_MS, 1000, 12 * DAY_MS, 1000):
        now_ms += step_ms
        n = int(rng.integers(0, 60))
        items = rng.zipf(1.3, n) % 40 - 5
        times = now_ms - rng.choice([0, 1000, 2 * HOUR_MS, 30 * HOUR_MS, 9 * DAY_MS], n) * rng.integers(0, 2, n)
        lists.add(items, times, np.ones(n, np.int64))
        events += zip(items.tolist(), times.tolist(), strict=True)
        note = lists.lists(now_ms)
        for window in WINDOWS:
            assert listed(note, window) == by_hand(events, now_ms, window, most), (window, now_ms)


def test_nothing_is_shown() -> None:
    assert listed(Popular().lists(NOW_MS), "1h") == []
