"""The send log: rows tell what was sent, a new log replaces the old one, and the AUC counts closed windows only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from infra.replay import send_log
from infra.replay.report import Sent
from infra.replay.scoring import FAILED, Prediction
from infra.replay.send_log import SendLog
from streaming.declaration import Declaration, Feature
from streaming.source import Exposure

DECLARATION = Declaration("small", (Feature("viewer", "id"),), ("click", "like"), "click", window_ms=1000)


def exposure(name: str, ts_ms: int, **outcomes: int) -> Exposure:
    return Exposure(name, 1, 2, ts_ms, {"viewer": 1}, outcomes)


def prediction(click: float) -> Prediction:
    return Prediction({"click": click, "like": 0.5}, 3, 2.0)


def test_a_row_is_written_when_its_last_outcome_was_sent(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(send_log, "PART_ROWS", 1)
    (tmp_path / "impressions-00007.parquet").touch()
    log = SendLog(tmp_path, DECLARATION)
    assert not list(tmp_path.iterdir())  # a former replay's
    log.impression(exposure("a", 0, click=10, like=20), prediction(0.9), prediction(0.4), "l1")
    log.impression(exposure("b", 1), FAILED, prediction(0.4), "")
    log.outcome("a", "click", 10)
    log.outcome("a", "click", 11)  # a second one does not count
    log.outcome("c", "click", 12)
    assert [file.name for file in tmp_path.iterdir()] == ["impressions-00000.parquet"]  # b has no outcome
    log.outcome("a", "like", 20)
    log.impression(exposure("d", 2, click=30), prediction(0.2), prediction(0.4), "l1")
    log.close()

    rows = pq.read_table(sorted(tmp_path.glob("*.parquet"))).to_pylist()
    assert [row["impression_id"] for row in rows] == ["b", "a", "d"]
    assert [(row["outcome_click"], row["outcome_like"]) for row in rows] == [(None, None), (10, 20), (None, None)]
    assert [row["ok"] for row in rows] == [False, True, True] and rows[1]["lineage"] == "l1"
    assert len(Sent.read(tmp_path, DECLARATION).impression_id) == 3


def test_a_value_task_has_the_value_of_its_action(tmp_path: Path) -> None:
    declared = replace(DECLARATION, values=("like",))
    log = SendLog(tmp_path, declared)
    log.impression(exposure("a", 0, like=20)._replace(values={"like": 2.5}), prediction(0.9), prediction(0.4), "l1")
    log.outcome("a", "like", 20)
    log.close()
    assert Sent.read(tmp_path, declared).values[0, 1] == 2.5


def test_progress_counts_and_judges_what_has_closed(tmp_path: Path) -> None:
    log = SendLog(tmp_path, DECLARATION)
    log.impression(exposure("a", 0, click=10), prediction(0.9), prediction(0.1), "l1")
    log.impression(exposure("b", 5, click=2000), prediction(0.2), prediction(0.3), "l1")
    log.impression(exposure("c", 900), prediction(0.99), prediction(0.99), "l1")
    log.impression(exposure("d", 901), FAILED, FAILED, "")
    log.predict_ms += [1.0, 3.0]
    log.outcome("a", "click", 10)
    log.outcome("b", "click", 2000)  # too late: b is a negative

    def progress(clock_ms: int) -> dict[str, object]:
        log.progress(clock_ms, {"held": True}, now=True)
        facts: dict[str, object] = json.loads((tmp_path / "progress.json").read_text())
        return facts

    assert progress(500)["auc"] == {"task": "click", "served": None, "frozen": None, "labels": 0}
    facts = progress(1500)
    assert facts["auc"] == {"task": "click", "served": 1.0, "frozen": 0.0, "labels": 2}
    assert (facts["predictions"], facts["failed"], facts["failed_frozen"]) == (3, 1, 1)
    assert facts["predict_ms"] == {"p50": 2.0, "p99": 2.98} and facts["held"] is True
