"""batch_warm_start and publish_base, end to end: what is learned, what the gate says, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.interval import Interval, text
from delta_log.log import Log
from delta_log.verification import verify
from streaming.archive.archive import Archive
from tests.support import archived
from tests.support.airflow_child import PROJECT, Airflow, Run
from tests.support.facts import write_platform
from training.pipeline.sampling import Sampling, take

INTERVAL = Interval(archived.BEGIN_MS, archived.BEGIN_MS + 3 * archived.MINUTE_MS)


def both(airflow: Airflow, second: Airflow, platform: Path, one: tuple[str, dict], two: tuple[str, dict]) -> list[Run]:
    """A run of a DAG in each Airflow, begun at the same time."""
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(a.run, dag, form, platform) for a, (dag, form) in ((airflow, one), (second, two))]
        return [run.result() for run in runs]


@pytest.mark.timeout(600)
def test_two_runs_at_once_leave_what_one_leaves_and_the_candidate_is_judged_and_refused(airflow, second, platform):
    folder = platform.parent
    archived.archive(folder / "archive", 6)
    missing = airflow.run("batch_warm_start", {}, platform)
    assert missing.tasks["choose"] == "failed" and missing.tasks["train"] == "upstream_failed"
    assert "there is no sample; samples that are not empty: none (sample_examples makes them)" in missing.log

    sampling = ("sample_examples", {"begin": text(INTERVAL.begin_ms), "end": text(INTERVAL.end_ms)})
    one, two = both(airflow, second, platform, sampling, sampling)
    assert (one.state, two.state) == ("success", "success"), one.log[-3000:] + two.log[-3000:]
    sample = take(Archive(folder / "archive"), archived.declared(), INTERVAL, Sampling(), folder / "alone")
    assert one.returned["sample"] == two.returned["sample"] == sample | {"file": one.returned["sample"]["file"]}
    made = Path(one.returned["sample"]["file"])
    assert made.read_bytes() == Path(sample["file"]).read_bytes()
    assert sorted(p.name for p in made.parent.iterdir()) == ["examples.parquet", "sample.json"]

    (folder / "log").mkdir()
    write_platform(folder, {"mlflow": "none", "kafka": "127.0.0.1:1"}, gate_calibration=1.5)
    learning = ("batch_warm_start", {"begin_from": "none", "tolerance": 0.02})
    one, two = both(airflow, second, platform, learning, learning)
    for run in (one, two):
        assert run.tasks == {"choose": "success", "train": "success", "evaluate": "success", "promote": "skipped"}
        assert run.state == "success"
        assert " --tolerance 0.02 --calibration 1.5 " in run.log  # the form's, and the platform's setting
        assert f"minutehand {run.returned['train']['lineage']} is not promoted: " in run.log
    trained, judged, log = one.returned["train"], one.returned["evaluate"], Log(folder / "log")
    assert two.returned["train"]["lineage"] == trained["lineage"] and two.returned["evaluate"] == judged
    assert log.lineages() == [trained["lineage"]] and verify(log, trained["lineage"]) == []
    assert trained["rows"] == sample["rows"]
    assert judged["lineage"] == trained["lineage"]
    assert (judged["begin_ms"], judged["end_ms"]) == (INTERVAL.end_ms, INTERVAL.after().end_ms)
    # The scores as served are the truth here: three minutes of learning do not come near.
    assert judged["low"] <= judged["difference"] <= judged["high"]
    # One learned, and its child's lines are in its task's log; the other continued with that lineage.
    for line in (" examples learned, ", "learned the same data before: there is nothing to do"):
        assert sorted(line in run.log for run in (one, two)) == [False, True], line

    # A sample is made again while a warm start reads it.
    one, two = both(airflow, second, platform, sampling, ("batch_warm_start", {"begin_from": "none", "promote": False}))
    assert (one.state, two.state) == ("success", "success")
    assert made.read_bytes() == Path(sample["file"]).read_bytes()
    assert two.returned["train"]["lineage"] == trained["lineage"]


def test_a_base_is_published_of_what_serves_only(airflow, tmp_path):
    platform = write_platform(tmp_path, {"model-server-0": "127.0.0.1:1"})
    (tmp_path / "log").mkdir()
    run = airflow.run("publish_base", {}, platform)
    assert run.tasks == {"check": "failed", "publish": "upstream_failed"}
    assert "no lineage serves: there is nothing to publish" in run.log

    base = [sys.executable, "-m", "training.learn.batch_pass", "--source", archived.SOURCE, "--untrained"]
    subprocess.run([*base, "--log", tmp_path / "log"], check=True, cwd=PROJECT, capture_output=True, timeout=120)
    run = airflow.run("publish_base", {"timeout_s": 1}, platform)
    assert run.tasks == {"check": "success", "publish": "failed"}
    assert run.returned["check"]["deltas"] == 0
    assert json.loads(platform.read_text())["addresses"]["model-server-0"] in run.log
