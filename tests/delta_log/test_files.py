"""The files of bases and deltas hold what was written, and refuse what does not fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from delta_log.files import TableRows, read_rows, read_tables
from delta_log.fold import dense_weights
from delta_log.log import Log
from delta_log.manifest import LogBroken
from delta_log.verification import verify
from delta_log.writer import Cut, Writer
from tests.support.log_oracle import DIMS, MODEL, begun, replayed


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 6)
    base, deltas = log.chain(lineage)
    assert [m.seq for m in deltas] == [1, 2, 3, 4, 5, 6]
    assert replayed([base, *deltas]) == oracle.tables
    last = deltas[-1]
    for name, weight in dense_weights(base, deltas)[0].items():
        np.testing.assert_array_equal(weight.value, oracle.dense[name])
        np.testing.assert_array_equal(weight.slots, np.repeat(oracle.dense[name].ravel(), 2))
    assert {n: t.total for n, t in last.tables.items()} == {n: len(oracle.tables[n]) for n in DIMS}
    assert (last.learned, last.learned_until_ms) == ({"count": 7, "sum": str(2**64 - 7)}, 3500)
    assert last.positions["offsets"] == {"0": 70}
    assert verify(log, lineage) == []


def test_an_empty_delta_and_empty_tables(tmp_path: Path) -> None:
    log = Log(tmp_path)
    none = {n: TableRows(np.empty(0, np.int64), np.empty((0, d), np.float32), np.empty((0, s), np.float32),
                         np.empty(0, np.uint32), np.empty(0, np.int64)) for n, (d, s) in DIMS.items()}  # fmt: skip
    cut = Cut("simulator", "d" * 64, MODEL, none, {}, dict.fromkeys(DIMS, 0), 1)
    with Writer(log, log.new_lineage()) as writer:
        writer.first_base(cut)
        delta = writer.delta(cut)
    assert {n: (k.shape, r.shape) for n, (k, r) in read_rows(delta).items()} == {
        "user": ((0,), (0, 3)),
        "item": ((0,), (0, 5)),
    }
    assert verify(log, writer.lineage) == []


def test_a_key_in_rows_and_removed_is_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 0)
    cut = oracle.change()
    user = cut.tables["user"]
    bad = replace(cut, tables={**cut.tables, "user": user._replace(removed=user.keys[:1])})
    with Writer(log, lineage) as writer:
        delta = writer.delta(bad)
    with pytest.raises(LogBroken, match=f"table user: key {user.keys[0]} is in rows and in removed"):
        read_tables(delta)
    assert any("in rows and in removed" in p for p in verify(log, lineage))


def test_an_admission_line_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 0)
    cut = oracle.change()
    item = cut.tables["item"]
    twice = item.admission._replace(places=np.full_like(item.admission.places, 7))
    with Writer(log, lineage) as writer:
        delta = writer.delta(replace(cut, tables={**cut.tables, "item": item._replace(admission=twice)}))
    with pytest.raises(LogBroken, match="admission.arrow: table item: a line of the admission filter is listed twice"):
        read_tables(delta)
    assert any("a line of the admission filter is listed twice" in p for p in verify(log, lineage))
