"""materialize_features and watch_platform, end to end."""

from __future__ import annotations

import json
import time

import pytest
from prometheus_client import CollectorRegistry, Gauge

from common.health import Health
from common.interval import Interval, text
from features.store import Features
from tests.support import archived
from tests.support.facts import write_platform
from tests.support.ports import free_port

INTERVAL = Interval(archived.BEGIN_MS, archived.BEGIN_MS + 2 * archived.MINUTE_MS)
GIVEN = {"begin": text(INTERVAL.begin_ms), "end": text(INTERVAL.end_ms)}


def test_materialize_makes_an_intervals_newest_rows_readable_and_one_without_rows_is_no_error(airflow, platform):
    folder = platform.parent / "features"
    store = Features(folder, archived.SOURCE)
    clip = store.plan.item_key
    for k, at_ms in enumerate((INTERVAL.begin_ms, INTERVAL.end_ms - 1, INTERVAL.end_ms), 1):
        store.write({"video": {clip: [5], "ts_ms": [at_ms], "maker": [k], "topics": [[k]], "born": [1.0]}})
    for file in [*folder.glob("online.db*"), folder / "applied.json"]:  # the online store is lost
        file.unlink()
    run = airflow.run("materialize_features", GIVEN, platform)
    assert run.state == "success", run.log[-6000:]
    assert run.returned["materialize"] == dict.fromkeys(store.plan.columns, 0) | {"video": 1}
    asked = {"features": ["video:maker"], "entity_rows": [{clip: 5}]}
    online = Features(folder, archived.SOURCE).feast
    assert online.get_online_features(**asked).to_dict()["maker"] == [2]

    after = {"begin": text(INTERVAL.end_ms + 60_000), "end": text(INTERVAL.end_ms + 120_000)}
    run = airflow.run("materialize_features", after, platform)
    assert run.state == "success" and set(run.returned["materialize"].values()) == {0}
    assert online.get_online_features(**asked).to_dict()["maker"] == [2]


@pytest.fixture
def trainer():
    port, registry = free_port(), CollectorRegistry()
    lag = Gauge("minutehand_trainer_lag_records", "records", registry=registry)
    health = Health(port, registry)
    health.reason = ""
    yield f"http://127.0.0.1:{port}", lag
    health.close()


def test_watch_is_green_when_all_is_well_and_names_what_is_not(airflow, tmp_path, trainer):
    url, lag = trainer
    platform = write_platform(tmp_path, {"trainer": url})
    archived.archive(tmp_path / "archive", 6)
    now = round(time.time() * 1000)
    line = {"confirmed_ms": now, "learned_until_ms": 1, "written_ms": {"positive": {str(now - 9000): 3}}}
    (tmp_path / "models" / "replica-0" / "ranker").mkdir(parents=True)
    (tmp_path / "models" / "replica-0" / "ranker" / "sync.jsonl").write_text(json.dumps(line) + "\n")

    run = airflow.run("watch_platform", {"minutes": 3}, platform)
    assert run.state == "success", run.log[-6000:]
    seen = {figure["name"]: figure["seen"] for figure in run.returned["look"]["figures"]}
    assert seen["health of trainer"] == "ready"
    assert seen["freshness p99 of replica-0/ranker, seconds"] == 9
    assert 0.8 < seen["calibration of watch, mean score / rate"] < 1.25
    assert seen["drift of score_watch, stability index"] < 0.25

    lag.set(20_000)
    run = airflow.run("watch_platform", {"minutes": 3}, platform)
    assert run.state == "failed"
    error = "minutehand_trainer_lag_records of trainer: seen is 20000, allowed is at most 10000"
    assert f"FailException: {error}" in " ".join(run.log.split())
