"""Each figure of watch_platform: what is seen, what is allowed, and what is not judged."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from prometheus_client import CollectorRegistry, Gauge

from common.health import Health
from infra import watch
from tests.support import archived
from tests.support.ports import free_port

NOW = 1_800_000_000_000


def lines(folder, *entries):
    """sync.jsonl of deltas (confirmed s ago, event time learned until, seconds from Kafka to here)."""
    folder.mkdir(parents=True)
    with (folder / "sync.jsonl").open("w") as f:
        for ago_s, learned_until_ms, age_s in entries:
            at = NOW - 1000 * ago_s
            written = {"positive": {str(at - 1000 * age_s): 7}, "negative": {}}
            line = {"confirmed_ms": at, "learned_until_ms": learned_until_ms, "written_ms": written}
            f.write(json.dumps(line) + "\n")
    return folder


def test_freshness_is_of_the_last_minutes_and_of_new_events(tmp_path):
    replica = lines(tmp_path / "replica-0" / "ranker", (3600, 10, 500), (60, 20, 30), (50, 15, 900), (40, 30, 50))
    figure = watch.freshness_of(replica, 60, 10, NOW, True)
    name = "freshness p99 of replica-0/ranker, seconds"
    assert str(figure).startswith(f"{name}: seen is 50, allowed is at most 130 (2 x sync")
    assert figure.ok
    assert not watch.freshness_of(replica, 15, 10, NOW, True).ok
    idle, behind = (watch.freshness_of(tmp_path / "replica-1", 60, 10, NOW, examples) for examples in (False, True))
    assert idle.seen is behind.seen is None and idle.ok and not behind.ok


def test_events_that_were_not_learned_from_are_counted():
    well = watch.Traffic(100, {"actions.late": 9}, True)
    assert all(figure.ok for figure in watch.refusals(well, 0, 0.1))
    ill = watch.Traffic(100, {"actions.late": 5, "impressions.dead": 1, "impressions.late": 6}, True)
    dead, late = watch.refusals(ill, 0, 0.1)
    assert str(dead) == (
        "dead letters (actions.late 5, impressions.dead 1, impressions.late 6): seen is 1, allowed is at most 0"
    )
    assert not late.ok and late.seen == 0.11
    assert all(figure.ok for figure in watch.refusals(ill, 1, 0.2))
    assert not watch.traffic_of("127.0.0.1:1", 60, 60, NOW)


def scored(factor: float) -> pa.Table:
    """Examples of a day whose scores are the truth times a factor, sampled with pi 0.5."""
    source = archived.simulator()
    shown = archived.exposures(source, archived.BEGIN_MS, archived.BEGIN_MS + 6 * archived.MINUTE_MS)
    table = archived.tables(source, shown, pi=0.5)["examples"]
    place = table.schema.get_field_index("score_watch")
    return table.set_column(place, "score_watch", pc.multiply(table["score_watch"], pa.scalar(factor, pa.float32())))


def test_calibration_counts_a_sampled_negative_as_often_as_it_stands_for():
    figure = watch.calibration(scored(1.0), archived.declared(), 0.02)
    assert figure.seen == pytest.approx(1, abs=0.1) and figure.ok
    off = watch.calibration(scored(1.5), archived.declared(), 0.05)
    assert not off.ok
    assert str(off).startswith("calibration of watch, mean score / rate: seen is 1.5")
    assert watch.calibration(scored(1.5).slice(0, 50), archived.declared(), 0.05).seen is None


def test_drift_is_seen_and_chance_is_not():
    rng = np.random.default_rng(0)
    old, same, moved = rng.normal(size=3000), rng.normal(size=3000), rng.normal(1, 1, 3000)
    assert watch.drift(old, same, "score_watch", 0.1).ok
    figure = watch.drift(old, np.append(moved, np.nan), "score_watch", 0.25)
    assert not figure.ok and "drift of score_watch, stability index: seen is 1.00" in str(figure)
    assert watch.drift(old[:100], moved, "score_watch", 0.25).seen is None


def test_a_feature_that_ages_has_not_drifted_and_one_that_moved_has():
    rng = np.random.default_rng(0)
    uploaded = rng.choice([26.0, 27.0, 28.0, 29.0], 3000) - rng.uniform(0, 1 / 24, 3000)  # days before the hour's end
    hour_ago, now = np.log1p(uploaded), np.log1p(uploaded + 1 / 24)
    assert not watch.drift(hour_ago, now, "feature_age", 1).ok  # what the score's measure would say of it
    figure = watch.moved(hour_ago, now, "feature_age", 1)
    assert figure.ok and 0 < figure.seen < 0.1
    old, stuck = rng.normal(1, 0.4, 3000), np.where(rng.random(3000) < 0.6, 0.0, rng.normal(1, 0.4, 3000))
    figure = watch.moved(old, stuck, "feature_rate", 1)
    assert not figure.ok and str(figure).startswith("drift of feature_rate, standard deviations: seen is 1.")
    assert watch.moved(old, rng.normal(1.1, 0.4, 3000), "feature_rate", 1).ok
    still = np.zeros(600)
    assert watch.moved(still, still, "feature_age", 1).seen == 0 and not watch.moved(still, still + 1, "x", 1).ok
    assert watch.moved(old[:100], stuck, "feature_age", 1).seen is None


def test_what_a_process_says_of_itself():
    registry = CollectorRegistry()
    lag = Gauge("minutehand_trainer_lag_records", "records", registry=registry)
    lag.set(20_000)
    health = Health(port := free_port(), registry)
    try:
        where = {"trainer": f"http://127.0.0.1:{port}", "kafka": "127.0.0.1:1", "sync-0": "http://127.0.0.1:1"}
        starting, broker, gone = watch.health(where)
        assert not starting.ok and "starting" in str(starting)
        assert not broker.ok and "health of kafka: seen is 127.0.0.1:1: " in str(broker)
        assert not gone.ok and "health of sync-0: seen is" in str(gone)
        health.reason = ""
        assert next(iter(watch.health(where))).ok
        (figure,) = watch.counts(where)
        assert str(figure) == "minutehand_trainer_lag_records of trainer: seen is 20000, allowed is at most 10000"
        assert not figure.ok
        lag.set(3)
        assert [f.ok for f in watch.counts(where)] == [True]
    finally:
        health.close()


def test_what_is_dead_is_named() -> None:
    gone = f"127.0.0.1:{free_port()}"
    loop = ("join", "clock", "trainer", "sync-0", "archive", "features", "model-server-0-rest")
    figures = list(watch.health({"kafka": gone, "mlflow": gone} | {name: f"http://{gone}" for name in loop}))
    assert {figure.name for figure in figures} == {f"health of {name}" for name in ("kafka", *loop)}
    assert all(not figure.ok and "refused" in str(figure) for figure in figures)
