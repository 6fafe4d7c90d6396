"""The log of counts: what is merged or summed up gives the same past, and a kill in between changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from features import adds
from features.adds import AddLog, past
from features.plan import plan
from features.profile.transaction import Adds
from streaming.slots import DAY_MS, HOUR_MS
from tests.support import shop_views

PLAN = plan(shop_views)  # type: ignore[arg-type]
BEGIN_MS, DAYS = 1_790_000_000_000, 60
COLUMNS = [column.name for column in PLAN.columns["counters"]]


def filled(folder: Path) -> AddLog:
    """Two commits a day, each of 20 adds of all slots, some of which are late."""
    log, rng = AddLog(folder, PLAN.slots), np.random.default_rng(1)
    for k in range(2 * DAYS):
        clock_ms, late = BEGIN_MS + k * DAY_MS // 2, rng.integers(0, 2, 20) * rng.integers(0, 3 * DAY_MS, 20)
        columns = rng.integers(0, 3, 20), rng.integers(0, 4, 20), rng.integers(0, 3, 20)
        log.write(clock_ms + 5, clock_ms, Adds(*columns, clock_ms - late, rng.integers(0, 2, 20), np.ones(20, int)))
    return log


def read(log: AddLog, at_ms: int) -> dict[str, list[object]]:
    return past(log, PLAN, "counters", COLUMNS, [0, 1, 2, 3, 9], [at_ms + 7 * k for k in range(5)])


def test_what_is_summed_up_gives_the_same_past(tmp_path: Path) -> None:
    log, horizon_ms = filled(tmp_path), BEGIN_MS + 30 * DAY_MS
    times = [horizon_ms + hours * HOUR_MS for hours in (0, 5, 200, 29 * 24)]
    expected = [read(log, at_ms) for at_ms in times]
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "adds", copy)
    log.sum_up(horizon_ms)
    assert [read(log, at_ms) for at_ms in times] == expected
    files = len(log.names())
    assert 2 * (30 + 7) <= files <= 2 * (30 + 8) + 2, "30 days, and the widest window before"
    sums = pq.read_table(tmp_path / "adds" / log.names()[0])
    assert set(sums["slot"].to_pylist()) == {0, 1}, "user_item has no window `all`"

    first = log.commits()[0].tolist()[
        1 + 2 * 7
    ]  # the first one whose week begins after the last one that was summed up
    with pytest.raises(InputError, match=rf"read_ms is {BEGIN_MS + 9 * DAY_MS}; allowed is {first} or later, since"):
        read(log, BEGIN_MS + 9 * DAY_MS)
    with pytest.raises(InputError, match="read_ms is 0; allowed"):
        read(log, 0)

    # It was killed before it removed the old files. Later days go the same way.
    for file in copy.iterdir():
        shutil.copy(file, tmp_path / "adds")
    assert [read(log, at_ms) for at_ms in times] == expected
    log.repair(BEGIN_MS + DAYS * DAY_MS)
    assert len(log.names()) == files == len(list((tmp_path / "adds").iterdir()))
    log.sum_up(horizon_ms + 10 * DAY_MS)
    assert [read(log, at_ms) for at_ms in times[3:]] == expected[3:]
    assert len(log.names()) == files - 20


def test_what_is_merged_gives_the_same_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, at_ms = filled(tmp_path), BEGIN_MS + 40 * DAY_MS
    monkeypatch.setattr(adds, "COMPACT_FILES", 2)
    monkeypatch.setattr(adds, "KEEP_MS", 10**5 * DAY_MS)
    expected, copy = read(log, at_ms), tmp_path / "copy"
    shutil.copytree(tmp_path / "adds", copy)
    log.compact()
    assert len(log.names()) == 1 and read(log, at_ms) == expected
    for file in copy.iterdir():  # it was killed before it removed them
        shutil.copy(file, tmp_path / "adds")
    assert len(log.names()) == 1 and read(log, at_ms) == expected
    assert len(log.commits()[0]) == 2 * DAYS
