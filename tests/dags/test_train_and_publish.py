"""batch_warm_start and publish_base, end to end: what is learned, what the gate says, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import archived
from airflow_child import PROJECT
from conftest import write_platform

from streaming.archive import Archive
from streaming.interval import Interval
from training.sampling import Sampling, take

INTERVAL = Interval(archived.BEGIN_MS, archived.BEGIN_MS + 3 * archived.MINUTE_MS)


def test_a_sample_becomes_a_candidate_that_is_judged_on_the_day_after_and_the_gate_refuses_it(airflow, platform):
    folder = platform.parent
    archived.archive(folder / "archive", 6)
    missing = airflow.run("batch_warm_start", {}, platform)
    assert missing.tasks["choose"] == "failed" and missing.tasks["train"] == "upstream_failed"
    assert "there is no sample; samples that are not empty: none (sample_examples makes them)" in missing.log

    sample = take(Archive(folder / "archive"), archived.declared(), INTERVAL, Sampling(), folder / "samples")
    write_platform(folder, {"mlflow": "none", "kafka": "127.0.0.1:1"})
    run = airflow.run("batch_warm_start", {"begin_from": "none"}, platform)
    assert run.tasks == {"choose": "success", "train": "success", "evaluate": "success", "promote": "skipped"}
    assert run.state == "success"
    trained, judged = run.returned["train"], run.returned["evaluate"]
    assert trained["rows"] == sample["rows"]
    assert judged["lineage"] == trained["lineage"]
    assert (judged["begin_ms"], judged["end_ms"]) == (INTERVAL.end_ms, INTERVAL.after().end_ms)
    assert judged["low"] <= judged["difference"] <= judged["high"]
    # The scores as served are the truth here: three minutes of learning do not come near.
    assert f"warm_start {trained['lineage']} is not promoted: " in run.log
    assert " examples learned, " in run.log  # the child's own lines, in the task's log


def test_a_base_is_published_of_what_serves_only(airflow, tmp_path):
    platform = write_platform(tmp_path, {"model-server-0": "127.0.0.1:1"})
    (tmp_path / "log").mkdir()
    run = airflow.run("publish_base", {}, platform)
    assert run.tasks == {"check": "failed", "publish": "upstream_failed"}
    assert "no lineage serves: there is nothing to publish" in run.log

    base = [sys.executable, "-m", "training.batch", "--source", archived.SOURCE, "--untrained"]
    subprocess.run([*base, "--log", tmp_path / "log"], check=True, cwd=PROJECT, capture_output=True, timeout=120)
    run = airflow.run("publish_base", {"timeout_s": 1}, platform)
    assert run.tasks == {"check": "success", "publish": "failed"}
    assert run.returned["check"]["deltas"] == 0
    assert json.loads(platform.read_text())["addresses"]["model-server-0"] in run.log
