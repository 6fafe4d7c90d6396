"""The replay against a real broker and a real model server: what it sends, in which order, and what its log says."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pyarrow.parquet as pq
import pytest

from features.profile.judge import Judge
from features.push import Counts
from features.push import begin as begin_store
from features.store import Features, now_ms
from infra.replay.replay import Replay, between
from infra.replay.scoring import FAILED, Shown, requests
from infra.replay.send_log import SendLog
from streaming.event_time import FUTURE_MS
from streaming.source import Exposure, load
from streaming.topics import ACTIONS, IMPRESSIONS, create
from tests.support import PROJECT
from tests.support.broker import Broker
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.replay import DISORDER_MS, FLAGS
from tests.support.wait import until

SOURCE = "simulator?seed=5&minutes=2&history_minutes=1&rate=8&viewers=50&clips=40&late=0.05"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
PATIENCE_S = 120


@pytest.fixture(scope="module")
def broker():
    with Broker() as running:
        create(running.bootstrap)
        assert create(running.bootstrap) == []
        yield running


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """The address of a model server that serves an untrained ranker and its frozen copy."""
    folder = tmp_path_factory.mktemp("serving")
    log = str(folder / "log")
    steps = [["training.learn.batch_pass", "--source", SOURCE, "--log", log, "--untrained"]]
    steps += [
        ["serving.export", "--source", SOURCE, "--log", log, "--to", str(folder / name), *more]
        for name, *more in (("ranker",), ("frozen", "--frozen"))
    ]
    for step in steps:
        done = subprocess.run(
            [sys.executable, "-m", *step], cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    models = "".join(
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}\n'
        for name in ("ranker", "frozen")
    )
    (folder / "models.config").write_text(f"model_config_list {{\n{models}}}\n")
    port = free_port()
    command = ["serving.server.model_server", "--port", str(port), "--rest_api_port", str(free_port())]
    probe = (
        "from serving.client import light, Scorer; light(); from streaming.sources.simulator import declaration as d\n"
        f"for m in ('ranker', 'frozen'): Scorer(['127.0.0.1:{port}'], m, d, timeout=60).score([{{}}])"
    )
    with Process(folder / "server.log", *command, "--model_config_file", str(folder / "models.config")):
        subprocess.run([sys.executable, "-c", probe], cwd=PROJECT, env=ENVIRONMENT, check=True, timeout=PATIENCE_S)
        yield f"127.0.0.1:{port}"


def replay(broker, serving, out, *more: str) -> Process:
    # The first address answers nobody: each call must go on to the one that does.
    addresses = f"127.0.0.1:{free_port()},{serving}"
    return Process(
        out.with_suffix(".log"), "infra.replay.replay", "--source", SOURCE, "--kafka", broker.bootstrap,
        "--serving", addresses, "--out", str(out), "--frozen", "frozen", *FLAGS, *more,
    )  # fmt: skip


def ends(broker) -> dict:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    try:
        return consumer.end_offsets([TopicPartition(t, p) for t in (IMPRESSIONS, ACTIONS) for p in (0, 1)])
    finally:
        consumer.close()


def messages(broker, begin) -> dict:
    """(topic, partition) -> the messages from `begin` on, in order."""
    from kafka import KafkaConsumer

    stop = ends(broker)
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    consumer.assign(list(begin))
    for partition, offset in begin.items():
        consumer.seek(partition, offset)
    found = {(p.topic, p.partition): [] for p in begin}

    def read() -> bool:
        for p, records in consumer.poll(200).items():
            found[p.topic, p.partition] += [json.loads(r.value) for r in records]
        return all(consumer.position(p) >= stop[p] for p in begin)

    until(read, "all messages", PATIENCE_S)
    consumer.close()
    return found


def progress(out: Path) -> dict:
    path = out / "progress.json"
    return json.loads(path.read_text()) if path.exists() else {}


def in_order(found) -> None:
    """Each partition: events in event order, and none behind a heartbeat that covers it."""
    for partition, records in found.items():
        newest = beat = -1
        for record in records:
            if "heartbeat_ms" in record:
                assert record["heartbeat_ms"] >= beat, partition
                beat = record["heartbeat_ms"]
            else:
                assert record["ts_ms"] > beat and record["ts_ms"] >= newest, partition
                newest = record["ts_ms"]


def events(found, topic) -> list[dict]:
    return [r for (t, _), records in found.items() if t == topic for r in records if "heartbeat_ms" not in r]


def test_everything_is_sent_once_in_order_and_logged(broker, serving, tmp_path):
    source = load(SOURCE)
    shown = {e.impression_id: e for e in source.live()}
    start_ms = min(e.ts_ms for e in shown.values())
    stage = tmp_path / "stage"
    begin, out = ends(broker), tmp_path / "out"
    process = replay(broker, serving, out, "--speed", "60", "--stage-file", str(stage))
    until(lambda: progress(out).get("held"), "the replay is held", process=process)
    assert progress(out)["events"] == 0

    stage.write_text(str(start_ms + 60_000))
    until(lambda: progress(out).get("clock_ms") == start_ms + 60_000, "the stage's end", process=process)
    half = messages(broker, begin)
    in_order(half)
    assert {e["impression_id"] for e in events(half, IMPRESSIONS)} == {
        e.impression_id for e in shown.values() if e.ts_ms <= start_ms + 60_000
    }

    stage.write_text("end")
    assert process.wait(PATIENCE_S) == 0, process.tail()
    found = messages(broker, begin)
    in_order(found)
    sent = {e["impression_id"]: e for e in events(found, IMPRESSIONS)}
    assert Counter(e["impression_id"] for e in events(found, IMPRESSIONS)) == Counter(dict.fromkeys(shown, 1))
    for key, event in sent.items():
        exposure = shown[key]
        assert (event["user_id"], event["item_id"], event["ts_ms"]) == exposure[1:4]
        assert event["features"] == exposure.features
        assert set(event["scores"]) == {"watch", "save"}
        assert event["seq"] == 0 and event["lineage"].startswith("000001-")
    acted = {(e["impression_id"], e["action"]): e["ts_ms"] for e in events(found, ACTIONS)}
    assert acted == {(key, task): t for key, e in shown.items() for task, t in e.outcomes.items()}
    assert len(acted) == len(events(found, ACTIONS))

    told = progress(out)
    assert told["finished"] and told["failed"] == told["failed_frozen"] == told["refused"] == 0
    assert told["predictions"] == len(shown) and told["events"] == len(shown) + len(acted)
    last = {key: records[-1]["heartbeat_ms"] for key, records in found.items()}
    windows = max(e.ts_ms for e in shown.values()) + source.declaration.window_ms
    assert min(last.values()) == told["end_ms"] >= windows + DISORDER_MS + 1
    assert told["auc"]["task"] == "watch" and told["auc"]["labels"] == len(shown)

    rows = pq.read_table(sorted(out.glob("*.parquet"))).to_pylist()
    assert {r["impression_id"] for r in rows} == set(shown) and len(rows) == len(shown)
    for row in rows:
        exposure = shown[row["impression_id"]]
        assert {t: row[f"outcome_{t}"] for t in ("watch", "save") if row[f"outcome_{t}"]} == exposure.outcomes
        assert row["served_watch"] == sent[row["impression_id"]]["scores"]["watch"] and row["ok"]
        # An untrained base and its frozen copy say the same.
        assert row["frozen_watch"] == pytest.approx(row["served_watch"], abs=1e-6)


def test_features_from_the_store_are_scored_and_logged_with_the_time_of_the_read(broker, serving, tmp_path):
    """The simulator's features are the same wherever they come from; only the log says which it was."""
    source = load(SOURCE)
    store = Features(tmp_path / "features", SOURCE)
    with Counts(store) as counts:
        begin_store(store, counts, Judge(store.plan.slots, source.declaration.window_ms, 1000), source.history())
    begin, out, from_ms = ends(broker), tmp_path / "out", now_ms()
    some = ["--until-ms", str(next(source.live()).ts_ms + 20_000), "--speed", "30"]
    process = replay(broker, serving, out, *some, "--features", "feast", "--feature-folder", str(tmp_path / "features"))
    assert process.wait(PATIENCE_S) == 0, process.tail()
    sent = events(messages(broker, begin), IMPRESSIONS)
    shown = {e.impression_id: e for e in source.live()}
    assert len(sent) > 100 and progress(out)["failed"] == 0
    for event in sent:
        assert event["features"] == shown[event["impression_id"]].features
        assert from_ms < event["read_ms"] <= now_ms() and event["scores"]


def test_no_event_is_far_ahead_of_its_heartbeat_at_any_speed(tmp_path):
    step_ms, declaration = 1_200_000, load(SOURCE).declaration
    task = declaration.tasks[0]
    exposures = [Exposure(f"i{k}", 1, 1, k * step_ms, {}, {task: k * step_ms + 60_000}) for k in range(1, 21)]

    class Sent:
        """What a publisher is given: (heartbeat before it, event time) of each event."""

        sent = refused = heartbeats = 0
        stop = threading.Event()
        heartbeat_ms = exposures[0].ts_ms
        times: ClassVar[list] = []

        def send(self, topic, event):
            self.times.append((self.heartbeat_ms, event["ts_ms"]))
            return True

        def heartbeat(self, ms):
            self.heartbeat_ms = ms

        def flush(self):
            pass

    class Unscored:
        served = SimpleNamespace(replica=0)

        def show(self, exposures):
            return [Shown(e, e.impression_id, 0, FAILED, FAILED, 0) for e in exposures]

    class AtOnce:
        speed, throttled, replicas = 1e9, False, SimpleNamespace(lineage=lambda replica: "")

        def after(self, clock_ms, elapsed_s):
            return clock_ms + 1000 * elapsed_s * self.speed

        def lag_s(self, clock_ms):
            return 0.0

    sent = Sent()
    log = SendLog(tmp_path / "replay", declaration)
    assert Replay(exposures, declaration, sent, log, Unscored(), AtOnce(), DISORDER_MS).run()
    assert len(sent.times) == 40
    assert max(ts_ms - heartbeat_ms for heartbeat_ms, ts_ms in sent.times) < FUTURE_MS


def test_sigterm_ends_it_with_a_log_of_what_was_sent(broker, serving, tmp_path):
    begin, out = ends(broker), tmp_path / "out"
    process = replay(broker, serving, out, "--wall-s", "100000")
    # Far slower than real time: it is surely not through when the signal comes.
    until(lambda: progress(out).get("predictions", 0) > 0, "a prediction", process=process)
    assert process.end(seconds=30) == 130, process.tail()
    found = messages(broker, begin)
    in_order(found)
    rows = pq.read_table(sorted(out.glob("*.parquet"))).to_pylist()
    assert {r["impression_id"] for r in rows} == {e["impression_id"] for e in events(found, IMPRESSIONS)}
    logged = {(r["impression_id"], t): r[f"outcome_{t}"] for r in rows for t in ("watch", "save")}
    acted = {(e["impression_id"], e["action"]): e["ts_ms"] for e in events(found, ACTIONS)}
    assert {key: t for key, t in logged.items() if t is not None} == acted
    assert not progress(out)["finished"] and progress(out)["predictions"] == len(rows)


def test_a_users_exposures_are_one_request():
    exposures = [Exposure(f"i{k}", user, 1, k, {}, {}) for k, user in enumerate([7, 7, 8, 7, 9, 8])]
    assert requests(exposures) == [[0, 1, 3], [2, 5], [4]]


def test_a_source_out_of_order_or_empty_is_refused():
    exposures = [Exposure(f"i{k}", 1, 1, t, {}, {}) for k, t in enumerate([5, 4])]
    with pytest.raises(ValueError, match="i1 comes after a later one"):
        between(iter(exposures), 0, 10)
    with pytest.raises(ValueError, match="no live exposure from 6 until 10"):
        between(iter(exposures), 6, 10)


def test_wrong_settings_are_named():
    base = ["--source", SOURCE, "--kafka", "127.0.0.1:1", "--serving", "127.0.0.1:1", "--out", "x", *FLAGS]
    for more, said in (
        (["--speed", "0"], "--speed: is 0, allowed is more than 0"),
        (["--wall-s", "-1"], "--wall-s: is -1, allowed is more than 0"),
        (["--features", "feast"], "--feature-folder is missing"),
        (["--lease", ""], "--lease is missing; allowed is the lease of a platform whose event_time is replay"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "infra.replay.replay", *base, *more],
            cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 2 and said in done.stderr


def test_status_and_a_refused_call_of_a_real_server(serving):
    code = (
        "from serving.client import *; light(); from streaming.sources.simulator import declaration as d\n"
        f"s = Scorer(['127.0.0.1:1', {serving!r}], 'ranker', d); print(s.status(1))\n"
        "print(s.score([{'viewer': 1, 'topics': []}, {}])[1], s.replica)\n"
        "for call in (lambda: s.call('no_such_signature', {}), lambda: s.status(0)):\n"
        "    try: call()\n"
        "    except PredictionFailed as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    status, scored, refused, away = done.stdout.splitlines()
    assert "'lineage': '000001-" in status and "'learned_until_ms': -1" in status and "'seq': 0" in status
    assert scored == "0 1"
    assert "FAILED_PRECONDITION" in refused and "no_such_signature" in refused
    assert away.startswith("model ranker, signature status: 127.0.0.1:1 UNAVAILABLE")


def test_it_slows_down_while_the_loop_lags_and_says_so_once(broker, serving, tmp_path):
    # Nobody learns here: the served model stands where it began.
    out = tmp_path / "out"
    process = replay(broker, serving, out, "--speed", "2", "--sync-every-ms", "1")
    slowed = until(lambda: (p := progress(out)).get("throttled") and p, "it slows down", process=process)
    until(lambda: progress(out)["clock_ms"] > slowed["clock_ms"], "it goes on", process=process)
    assert process.end() == 130 and process.text().count("slowing down") == 1, process.tail()
    # Two syncs, the allowance of 2 s and the disorder (1 s at twice its pace): not before.
    assert slowed["lag_s"] > 2.5
