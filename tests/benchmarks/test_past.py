"""Counts of a whole log at once are those of the profile store at the time of each exposure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.common.past import NEVER, Past
from features.counted import Counted
from features.profile.judge import Judge
from features.profile.store import Profiles
from streaming.slots import MINUTE_MS
from streaming.sources.kuairand import KuaiRand
from tests.streaming.sources import test_kuairand


def test_counts_and_lists_are_what_the_store_answers(tmp_path: Path) -> None:
    test_kuairand.write(tmp_path / "data", test_kuairand.made_up(n=300))
    source = KuaiRand(3, 2, tmp_path / "data")
    slots, counted = source.slots, Counted(source.slots)
    exposures = [*source.history(), *source.live()]
    # The store's windows end with a minute; events are at whole seconds.
    until_ms = np.array([e.ts_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS - 1 for e in exposures])
    past = Past(exposures, source.declaration, slots, until_ms)
    judge = Judge(slots, source.declaration.window_ms, 1000)
    judge.seed(exposures)
    by_name = {slot.name: slot for slot in slots.slots}
    with Profiles(tmp_path, slots, writes=True) as profiles:
        with profiles.writing() as commit:
            commit.add(judge.take().adds)
        every = [(n, w, a) for n in ("user", "item") for w in ("1h", "1d", "7d", "all") for a in ("shown", "click")]
        numbers = {(name, window, action): past.counts(by_name[name], window, action) for name, window, action in every}
        lists = {
            name: past.lists(by_name[name], "click") for name in ("user_author", "user_tag", "user_tab", "user_item")
        }
        crossed, newest_ms = past.counts(by_name["user_author"], "7d", "click"), past.newest_ms(by_name["user"])
        for k, e in list(enumerate(exposures))[::7]:
            now_ms = int(until_ms[k])
            for (name, window, action), counts in numbers.items():
                view, key = ("activity", e.user_id) if name == "user" else ("counters", e.item_id)
                column = f"{name}_{action}_{window}"
                assert counted.read(profiles, view, [column], [key], now_ms)[column] == [counts[k]], (k, column)
            for name, (most, last) in lists.items():
                window = "all" if name == "user_tab" else "7d"
                for column, ragged in ((f"{name}_{window}", most), (f"{name}_click_last", last)):
                    begin, end = ragged.row_splits[k : k + 2]
                    found = counted.read(profiles, "activity", [column], [e.user_id], now_ms)[column][0]
                    assert found == ragged.values[begin:end].tolist(), (k, column)
            columns = ["user_author_7d", "user_author_click_7d", "user_shown_ms"]
            read = counted.read(profiles, "activity", columns, [e.user_id], now_ms)
            clicks = dict(zip(read["user_author_7d"][0], read["user_author_click_7d"][0], strict=True))
            assert crossed[k] == clicks.get(e.features["author"], 0)
            assert newest_ms[k] == (read["user_shown_ms"][0] or NEVER)
