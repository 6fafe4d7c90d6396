"""A compacted base equals the chain that it was made of."""

from __future__ import annotations

from pathlib import Path

from delta_log.compaction import compact
from delta_log.verification import verify
from delta_log.writer import Writer
from tests.support.log_oracle import begun, replayed


def test_a_compacted_base_is_the_chain_it_was_made_of(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 5)
    with Writer(log, lineage) as writer:
        made = compact(log, writer)
        assert made is not None and made.name == "base-000000005"
        assert compact(log, writer) is None
        assert replayed([made]) == oracle.tables
        writer.delta(oracle.change())
    base, deltas = log.chain(lineage)
    assert (base.seq, [d.seq for d in deltas]) == (5, [6])
    assert replayed([base, *deltas]) == oracle.tables
    old, all_deltas = log.chain(lineage, 0)
    assert replayed([old, *all_deltas]) == oracle.tables
    assert made.learned == all_deltas[4].learned and made.positions == all_deltas[4].positions
    assert verify(log, lineage) == []
