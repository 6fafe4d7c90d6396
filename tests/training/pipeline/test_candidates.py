"""The records of candidates: they are found by what was learned, and one warm start at a time writes them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from delta_log.log import Log
from delta_log.manifest import LogError
from tests.support.lineage import Lineage
from training.pipeline import candidates

FIRST, SECOND = "000001-0000000a", "000002-0000000b"
RECORD = {"lineage": FIRST, "data_sha256": "d", "from": "none", "declaration": "shop", "model": "deepfm"}
RECORD["given_sha256"] = "e"


@pytest.fixture
def delta_log(tmp_path: Path) -> Log:
    """A log with two lineages, of which a warm start began the first."""
    for name in (FIRST, SECOND):
        Lineage(tmp_path, name, keys=9).writer.close()
    candidates.write(Log(tmp_path), FIRST, RECORD)
    return Log(tmp_path)


def test_a_record_is_found_by_the_same_data_base_and_model(delta_log: Log) -> None:
    asked = {name: RECORD[name] for name in ("data_sha256", "from", "declaration", "model")}
    assert candidates.begun_with(delta_log, asked) == RECORD
    for name in asked:
        assert candidates.begun_with(delta_log, asked | {name: "another"}) is None
    with pytest.raises(LogError, match=f"no warm start began lineage {SECOND}"):
        candidates.read(delta_log, SECOND)


def test_the_served_lineage_is_found_by_its_examples(delta_log: Log) -> None:
    assert candidates.that_serves(delta_log, "e", "shop") is None
    delta_log.serve(FIRST)
    assert candidates.that_serves(delta_log, "e", "shop") == RECORD
    assert candidates.that_serves(delta_log, "f", "shop") is None
    delta_log.serve(SECOND)
    assert candidates.that_serves(delta_log, "e", "shop") is None


def test_the_second_of_two_warm_starts_waits(delta_log: Log, caplog: pytest.LogCaptureFixture) -> None:
    began = threading.Event()

    def second() -> None:
        with candidates.one_at_a_time(delta_log):
            began.set()

    waiting = threading.Thread(target=second)
    with candidates.one_at_a_time(delta_log):
        waiting.start()
        assert not began.wait(0.5)
    assert began.wait(10)
    waiting.join()
    assert "one warm start at a time works on a log: waiting until it has ended" in caplog.text


def test_a_log_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    with candidates.one_at_a_time(Log(tmp_path / "log")):
        assert not (tmp_path / "log").exists()
