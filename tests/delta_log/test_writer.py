"""A lineage has one writer; it continues at the next seq, and removes what nobody needs."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from common import disk
from delta_log.compaction import compact
from delta_log.log import Log
from delta_log.manifest import MANIFEST, LogBusy, LogError
from delta_log.verification import verify
from delta_log.writer import Writer, prune_lineages
from tests.support.log_oracle import Oracle, begun, replayed


def test_a_writer_resumes_at_the_next_seq(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 2)
    with Writer(log, lineage) as writer:
        assert writer.delta(oracle.change()).seq == 3
        with pytest.raises(LogError, match="has begun already"):
            writer.first_base(Oracle(1).whole())
    base, deltas = log.chain(lineage)
    assert replayed([base, *deltas]) == oracle.tables


def test_pruning_keeps_every_chain_from_a_kept_base(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 0)
    with Writer(log, lineage) as writer:
        for _ in range(4):
            for _ in range(3):
                writer.delta(oracle.change())
            compact(log, writer)
        writer.delta(oracle.change())
        removed = writer.prune(2)
    assert log.seqs(lineage, "base") == [9, 12]
    assert log.seqs(lineage, "delta") == [10, 11, 12, 13]
    assert sorted(removed) == sorted([f"base-{s:09d}" for s in (0, 3, 6)] + [f"delta-{s:09d}" for s in range(1, 10)])
    for base_seq in (9, 12):
        base, deltas = log.chain(lineage, base_seq)
        assert replayed([base, *deltas]) == oracle.tables
    assert verify(log, lineage) == []
    with Writer(log, lineage) as writer:
        assert writer.delta(oracle.change()).seq == 14
        with pytest.raises(ValueError, match="keep_bases is 0"):
            writer.prune(0)


def test_a_second_writer_says_so(tmp_path: Path) -> None:
    log, lineage, _ = begun(tmp_path, 1)
    with Writer(log, lineage):
        with pytest.raises(LogBusy, match=f"{lineage}.lock: held by process [0-9]+: a lineage has one writer"):
            Writer(log, lineage)
        Writer(log, log.new_lineage()).close()
    Writer(log, lineage).close()


FAILED = OSError(errno.EIO, "Input/output error")


def test_an_error_after_the_manifest_has_its_name_leaves_a_delta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, lineage, oracle = begun(tmp_path, 1)
    flush = disk.flush_folder

    def failing(folder: Path) -> None:
        if (folder / MANIFEST).exists():
            raise FAILED
        flush(folder)

    with Writer(log, lineage) as writer:
        monkeypatch.setattr(disk, "flush_folder", failing)
        assert writer.delta(oracle.change()) == log.manifest(lineage, "delta", 2)
        cut = oracle.change()
        with pytest.raises(OSError, match="Input/output error"):
            writer.delta(cut)  # the one before could still be lost, so nothing may follow it
        monkeypatch.undo()
        assert writer.delta(cut).seq == 3
    base, deltas = log.chain(lineage)
    assert replayed([base, *deltas]) == oracle.tables and verify(log, lineage) == []


def test_what_an_attempt_left_that_could_not_see_its_end_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, lineage, oracle = begun(tmp_path, 1)
    publish = disk.publish

    def blind(*words: Any) -> None:
        publish(*words)
        monkeypatch.setattr(Path, "read_bytes", failing)
        raise FAILED

    def failing(path: Path) -> bytes:
        raise FAILED

    with Writer(log, lineage) as writer:
        monkeypatch.setattr(disk, "publish", blind)
        with pytest.raises(OSError, match="Input/output error"):
            writer.delta(oracle.change())
        monkeypatch.undo()
        assert writer.delta(oracle.change()).seq == 3
    base, deltas = log.chain(lineage)
    assert replayed([base, *deltas]) == oracle.tables and verify(log, lineage) == []


def test_lineages_are_named_apart_and_the_old_ones_go(tmp_path: Path) -> None:
    log = Log(tmp_path)
    names = [begun(tmp_path, 1)[1] for _ in range(5)]
    assert [int(name[:6]) for name in names] == [1, 2, 3, 4, 5] and log.lineages() == names
    assert int(log.new_lineage()[:6]) == 6 and int(log.new_lineage()[:6]) == 7  # nothing in them yet, but taken
    log.serve(names[0])
    with Writer(log, names[1]):
        assert prune_lineages(log, 2) == [names[2]]
    assert log.lineages() == [names[0], names[1], names[3], names[4]]
    log.serve(names[4])
    assert prune_lineages(log, 1) == [names[0], names[1], names[3]] and log.lineages() == names[4:]
    with pytest.raises(ValueError, match="keep_lineages is 0, allowed is 1 or more"):
        prune_lineages(log, 0)
