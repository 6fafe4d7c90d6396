"""A compacted base equals the chain that it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from delta_log.compaction import compact
from delta_log.files import read_served
from delta_log.fold import dense_weights
from delta_log.manifest import Manifest
from delta_log.verification import verify
from delta_log.writer import Writer
from tests.support.log_oracle import Oracle, begun, replayed


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


def has_dense(oracle: Oracle, base: Manifest, deltas: list[Manifest]) -> bool:
    weights, served = dense_weights(base, deltas)
    assert weights.keys() == served.keys() == oracle.dense.keys()
    trained = all(np.array_equal(weights[n].value, value) for n, value in oracle.dense.items())
    slots = all(np.array_equal(weights[n].slots, np.repeat(v.ravel(), 2)) for n, v in oracle.dense.items())
    return trained and slots and all(np.array_equal(served[n], value) for n, value in oracle.served.items())


def test_dense_weights_are_those_of_the_last_delta_that_had_them(tmp_path: Path) -> None:
    """Bases that are made after a delta without dense weights, after one that serves none, and after one that does."""
    log, lineage, oracle = begun(tmp_path, 0)
    with Writer(log, lineage) as writer:
        for seq, dense_seq in enumerate((0, 0, 3, 3, 3, 6), 1):
            delta = writer.delta(oracle.change())
            assert (delta.dense_seq, "dense.arrow" in delta.files) == (dense_seq, seq % 3 != 1)
            assert bool(read_served(delta)) == (dense_seq == seq)
            made = compact(log, writer)
            assert made is not None and made.dense_seq == dense_seq
            assert ("served.arrow" in made.files) == (dense_seq < seq)
            for base_seq in range(seq + 1):
                assert has_dense(oracle, *log.chain(lineage, base_seq))
    assert verify(log, lineage) == []
