"""Rows leave when their tick ended long enough ago, and their keys wait for a manifest."""

from __future__ import annotations

import numpy as np
import pytest

from training.cuckoo import Table
from training.learn.expiry import Expiry


@pytest.fixture
def tables() -> dict[str, Table]:
    return {name: Table(4, name) for name in ("short", "long", "never")}


def test_rows_leave_when_their_tick_ended_long_enough_ago(tables: dict[str, Table]) -> None:
    expiry = Expiry(tables, {"short": 100, "long": 1000})
    for tick, ended in ((1, 5000), (2, 5050), (3, 5100)):
        for table in tables.values():
            table.lookup([tick, 10 + tick])
            table.set_tick(tick + 1)
        expiry.ended(tick, ended)
    expiry.begin(5099)
    assert expiry.end() == 0 and not expiry.waiting()
    expiry.begin(5150)
    expiry.begin(5150)  # one at a time
    assert expiry.end() == 4 and expiry.waiting()
    assert expiry.tombstones["short"].tolist() == [1, 2, 11, 12]
    assert [t.stats()["size"] for t in tables.values()] == [2, 6, 6]
    tables["short"].lookup([2, 99])  # inserted again before the cut: no removal
    assert expiry.removed("short", np.array([99, 2])).tolist() == [1, 11, 12]
    expiry.begin(6050)
    assert expiry.end() == 2 + 4  # of short what is left of tick 3, of long ticks 1 and 2
    assert expiry.tombstones["long"].tolist() == [1, 2, 11, 12]
    assert expiry.tombstones["never"].tolist() == []


def test_tombstones_stay_until_a_manifest_has_them(tables: dict[str, Table]) -> None:
    expiry = Expiry(tables, {"short": 10})
    tables["short"].lookup([1, 2])
    tables["short"].set_tick(2)
    expiry.ended(1, 1000)
    expiry.begin(1010)
    expiry.end()
    in_cut = dict(expiry.tombstones)
    tables["short"].lookup([3])
    tables["short"].set_tick(3)
    expiry.ended(2, 1020)
    expiry.begin(1030)  # while the cut is being written
    expiry.committed(in_cut)
    expiry.end()
    assert expiry.tombstones["short"].tolist() == [3]
