"""The chain of a lineage is whole or refused; the serving pointer names a lineage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from delta_log.log import Log
from delta_log.manifest import LogBroken, LogError, ModelInfo
from delta_log.verification import verify
from delta_log.writer import Writer
from tests.support.log_oracle import Oracle, begun


def test_a_gap_is_refused_by_name(tmp_path: Path) -> None:
    log, lineage, _ = begun(tmp_path, 3)
    shutil.rmtree(tmp_path / lineage / "delta-000000002")
    with pytest.raises(LogBroken, match="delta-000000002: missing, but delta-000000003 exists: a gap"):
        log.chain(lineage)
    assert verify(log, lineage) != []
    with pytest.raises(LogBroken):
        Writer(log, lineage)


def test_a_repeat_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path / "a", 3)
    other_log, other, _ = begun(tmp_path / "b", 3, seed=8)
    ours = tmp_path / "a" / lineage
    shutil.copytree(ours / "delta-000000003", ours / "delta-000000004")  # a repeat under the next name
    with pytest.raises(LogBroken, match="is .*delta-000000003, expected .*delta-000000004: a foreign file"):
        log.chain(lineage)
    shutil.rmtree(ours / "delta-000000004")

    theirs = other_log.path / other / "delta-000000003"
    shutil.rmtree(ours / "delta-000000003")
    shutil.copytree(theirs, ours / "delta-000000003")
    with pytest.raises(LogBroken, match="a foreign file"):
        log.chain(lineage)
    manifest = json.loads((theirs / "manifest.json").read_text())  # the same, renamed to our lineage: the link tells
    (ours / "delta-000000003" / "manifest.json").write_text(json.dumps({**manifest, "lineage": lineage}))
    with pytest.raises(LogBroken, match="not of this chain"):
        log.chain(lineage)
    shutil.rmtree(ours / "delta-000000003")

    (ours / "delta-000000002" / "notes.txt").write_text("mine")
    with pytest.raises(LogBroken, match="notes.txt: a foreign file"):
        log.chain(lineage)
    (ours / "delta-000000002" / "notes.txt").unlink()
    (ours / "delta-2").mkdir()
    with pytest.raises(LogBroken, match="delta-2: a foreign file"):
        log.chain(lineage)
    (ours / "delta-2").rmdir()
    with Writer(log, lineage) as writer:
        assert writer.delta(oracle.change()).seq == 3


def test_a_log_of_another_declaration_is_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 1)
    with Writer(log, lineage) as writer:
        writer.delta(replace(oracle.change(), declaration="e" * 64))
    with pytest.raises(LogBroken, match="another declaration"):
        log.chain(lineage)


def test_a_delta_of_another_model_is_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 1)
    with Writer(log, lineage) as writer:
        writer.delta(replace(oracle.change(), model=ModelInfo("logistic", {"rate": 0.1})))
    with pytest.raises(LogBroken, match=r"model is logistic\?rate=0.1, before it deepfm\?dim=3"):
        log.chain(lineage)


def test_lineages_and_the_serving_pointer(tmp_path: Path) -> None:
    log, first, _ = begun(tmp_path / "log", 1)
    assert log.serving() is None
    log.serve(first)
    assert log.serving() == first
    with pytest.raises(LogError, match="has no base"):
        log.serve("000009-00000000")
    with Writer(log, log.new_lineage()) as writer:
        assert log.lineages() == [first]
        writer.first_base(Oracle(1).whole())
    assert log.lineages() == [first, writer.lineage] and writer.lineage.startswith("000002-")
    assert log.serving() == first
    (log.path / "SERVING").write_text("../../x\n")
    with pytest.raises(LogBroken, match="expected the name of a lineage"):
        log.serving()
    assert Log(tmp_path / "nothing").lineages() == []
    with pytest.raises(ValueError, match="lineage is '..'"):
        log.seqs("..", "base")
