"""Whole tables from a base and its deltas; the map of ticks to times stays small, and no row leaves early."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from delta_log.fold import PRECISION, merged, thinned
from tests.support.log_oracle import DIMS, begun


def test_merged_tables_equal_the_plain_dicts(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 6)
    tables = merged(*log.chain(lineage))
    for name in DIMS:
        rows = tables[name]
        entries = zip(rows.keys.tolist(), rows.rows.tolist(), rows.slots.tolist(), rows.ticks.tolist(), strict=True)
        assert {key: (row, slots, tick) for key, row, slots, tick in entries} == oracle.tables[name]
        assert not len(rows.removed)


def test_thinned_again_and_again_a_tick_ends_a_little_later_and_never_earlier() -> None:
    rng = np.random.default_rng(3)
    times, thin = {}, {}
    now = 1_700_000_000_000
    for tick in range(1, 4001):
        now += int(rng.choice([1000, 60_000, 60_000, 7_200_000], p=[0.2, 0.4, 0.3, 0.1]))
        times[tick] = now
        thin = thinned({**thin, tick: now})
    assert len(thin) < 2000 and max(thin) == 4000
    ticks = np.array(sorted(thin))
    for tick, ended in times.items():
        governed = thin[int(ticks[np.searchsorted(ticks, tick)])]
        assert 0 <= governed - ended <= (now - ended) / PRECISION


def test_ticks_before_the_oldest_row_and_times_that_are_unknown_are_left_out() -> None:
    assert thinned({1: -1, 2: -1, 3: 50, 4: 70}) == {3: 50, 4: 70}
    assert thinned({1: 10, 2: 20, 3: 50}, oldest=2) == {2: 20, 3: 50}
    assert thinned({1: 10, 2: 50, 3: 50}) == {1: 10, 3: 50}  # a tick that took no event time
    assert thinned({}) == {}
