"""A writer killed with -9 at every step it takes on the disk leaves a whole chain, and the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from delta_log.log import Log
from delta_log.manifest import MANIFEST
from delta_log.verification import verify
from delta_log.writer import Writer
from tests.support import PROJECT
from tests.support.log_oracle import begun, replayed

SEED = 7
RunChild = Callable[[Log, str, int, str, int], int]


@pytest.fixture(scope="module")
def run_child() -> Iterator[RunChild]:
    """Runs a writer that is killed at its n-th step on the log; returns how it ended."""
    command = [sys.executable, "-m", "tests.delta_log.kill_child"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        commands, codes = child.stdin, child.stdout

        def run(log: Log, lineage: str, changes: int, kind: str, kill_at: int) -> int:
            print(log.path, lineage, SEED, changes, kind, kill_at, file=commands, flush=True)
            return int(codes.readline())

        yield run


def unfinished(log: Log, lineage: str) -> list[str]:
    return [p.name for p in (log.path / lineage).iterdir() if not (p / MANIFEST).exists()]


def test_killed_at_every_step_of_a_delta(run_child: RunChild, tmp_path: Path) -> None:
    left_behind, existed = 0, []
    for kill_at in range(100):
        log, lineage, oracle = begun(tmp_path / str(kill_at), 2, SEED)
        code = run_child(log, lineage, 2, "delta", kill_at)
        before = {name: dict(table) for name, table in oracle.tables.items()}
        third = oracle.change()
        base, deltas = log.chain(lineage)
        exists = len(deltas) == 3
        assert replayed([base, *deltas]) == (oracle.tables if exists else before)
        assert verify(log, lineage) == []
        existed.append(exists)
        left_behind += len(unfinished(log, lineage))
        with Writer(log, lineage) as writer:
            assert unfinished(log, lineage) == []
            if not exists:
                assert writer.delta(third).seq == 3
            assert writer.delta(oracle.change()).seq == 4
        base, deltas = log.chain(lineage)
        assert replayed([base, *deltas]) == oracle.tables
        if code == 3:
            break
        assert code == -signal.SIGKILL
    # Files and folders are made, flushed, the manifest linked, its folder flushed: once there it stays there.
    assert code == 3 and kill_at > 12 and left_behind > 8
    assert existed == sorted(existed) and not existed[0] and existed[-2]


def test_killed_at_every_step_of_compacting_and_pruning(run_child: RunChild, tmp_path: Path) -> None:
    newest = []
    for kill_at in range(100):
        log, lineage, oracle = begun(tmp_path / str(kill_at), 3, SEED)
        code = run_child(log, lineage, 3, "compact", kill_at)
        base, deltas = log.chain(lineage)
        assert replayed([base, *deltas]) == oracle.tables
        assert verify(log, lineage) == []
        newest.append(base.seq)
        with Writer(log, lineage) as writer:
            assert unfinished(log, lineage) == []
            assert writer.delta(oracle.change()).seq == 4
        base, deltas = log.chain(lineage)
        assert replayed([base, *deltas]) == oracle.tables
        if code == 3:
            break
        assert code == -signal.SIGKILL
    assert code == 3 and newest == sorted(newest) and (newest[0], newest[-1]) == (0, 3)
    assert log.seqs(lineage, "base") == [3] and log.seqs(lineage, "delta") == [4]


def test_a_write_that_fails_is_written_again_under_the_same_seq(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 1)
    before = {name: dict(table) for name, table in oracle.tables.items()}
    cut = oracle.change()
    with Writer(log, lineage) as writer:
        (tmp_path / lineage / "delta-000000002").mkdir()  # of an attempt of its own that failed half way
        (tmp_path / lineage / "delta-000000002" / "rows-0.arrow").write_bytes(b"half")
        base, deltas = log.chain(lineage)
        assert replayed([base, *deltas]) == before
        assert writer.delta(cut).seq == 2
    base, deltas = log.chain(lineage)
    assert replayed([base, *deltas]) == oracle.tables
    assert verify(log, lineage) == []
