"""The online trainer as a process on a real broker: what it learns is what was sent, once, whatever is killed."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from delta_log.log import Log
from delta_log.manifest import LogBusy, LogError, Manifest
from delta_log.verification import verify
from delta_log.writer import Writer
from streaming import topics
from streaming.hashing import learned_sum
from streaming.source import load
from tests.support import PROJECT
from tests.support.broker import Broker, free_port
from tests.support.feeding import Sender, examples
from training.learn import batch_pass as batch

SOURCE = "simulator?seed=5&minutes=5"
LIVE = list(islice(load(SOURCE).live(), 6000))
DECLARATION = load(SOURCE).declaration
RECORDS = list(examples(LIVE, DECLARATION))
LAST_MS = max(r["event_ms"] for r in RECORDS)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        yield running


@pytest.fixture
def topic(broker: Broker) -> Broker:
    """An empty examples topic."""
    from kafka.admin import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    there = [t for t in ("examples", "examples.dead") if t in admin.list_topics()]
    admin.delete_topics(there)
    wait(lambda: not set(there) & set(admin.list_topics()), "the old topics to go")
    admin.close()
    topics.create(broker.bootstrap)
    return broker


class Process:
    """`python -m training.learn.online` on a free port."""

    def __init__(self, bootstrap: str, log: Path, folder: Path, *more: str) -> None:
        self.port = free_port()
        self.out = folder / f"trainer-{self.port}.log"
        command = [
            sys.executable,
            "-m",
            "training.learn.online",
            "--source",
            SOURCE,
            "--log",
            str(log),
            "--kafka",
            bootstrap,
        ]
        command += ["--sync-every-ms", "300", "--port", str(self.port), "--digest", *more]
        with self.out.open("wb") as out:
            self.popen = subprocess.Popen(command, stderr=out, cwd=PROJECT)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()
        except OSError:
            return 0, ""

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(60)


@pytest.fixture
def start(topic: Broker, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    batch.main(["--source", SOURCE, "--log", str(tmp_path / "log"), "--untrained"])
    started: list[Process] = []

    def run(*more: str) -> Process:
        started.append(Process(topic.bootstrap, tmp_path / "log", tmp_path, *more))
        return started[-1]

    yield run
    for process in started:
        process.end(signal.SIGKILL)


def wait(until: Callable[[], Any], what: str, most_s: float = 90) -> Any:
    deadline = time.monotonic() + most_s
    while not (found := until()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {most_s} s for {what}")
        time.sleep(0.05)
    return found


def newest(path: Path) -> Manifest:
    log = Log(path / "log")
    lineage = log.serving()
    assert lineage is not None
    base, deltas = log.chain(lineage)
    return deltas[-1] if deltas else base


def learned_by(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Count and sum over the records, as the manifest writes them."""
    pairs = [
        (r["impression_id"], task, int(r["labels"][task]))
        for r in records
        for task in range(len(r["labels"]))
        if r["weights"][task] > 0
    ]
    ids, tasks, labels = zip(*pairs, strict=True)
    return {"count": len(pairs), "sum": str(learned_sum(list(ids), tasks, labels))}


def test_all_is_learned_once_through_two_kills(topic: Broker, start: Callable[..., Process], tmp_path: Path) -> None:
    sender, third = Sender(topic.bootstrap), len(RECORDS) // 3
    for k in range(3):
        trainer = start("--base-every", "3")
        part = RECORDS[k * third : (k + 1) * third if k < 2 else None]
        for at in range(0, len(part), 500):
            sender.send(part[at : at + 500], progress_ms=LAST_MS if k == 2 and at + 500 >= len(part) else 0)
        seq = newest(tmp_path).seq
        if k < 2:
            wait(lambda s=seq: newest(tmp_path).seq > s, "a delta")  # then killed in the middle of what follows
            trainer.end(signal.SIGKILL)
    sender.close()
    last = wait(lambda: (m := newest(tmp_path)).learned_until_ms >= LAST_MS and m, "learned_until")
    assert last.learned == learned_by(RECORDS)
    assert trainer.end() == 0
    log = Log(tmp_path / "log")
    assert verify(log, last.lineage) == []
    assert newest(tmp_path).learned == learned_by(RECORDS)
    kinds = {kind: 0 for kind in ("positive", "negative")}
    base, deltas = log.chain(last.lineage, log.seqs(last.lineage, "base")[0])
    if base.seq == 0:
        for manifest in deltas:
            for kind, bins in manifest.written_ms.items():
                kinds[kind] += sum(bins.values())
        assert kinds == {kind: sum(r["kind"] == kind for r in RECORDS) for kind in kinds}


def test_bad_lines_are_kept_aside_and_the_rest_is_learned(
    topic: Broker, start: Callable[..., Process], tmp_path: Path
) -> None:
    good = RECORDS[:400]
    bad = [b"", b"{", b"null", b'"x"', b"\xff\xfe", b'{"v": 1}', json.dumps({**good[0], "pi": 0}).encode()]
    bad += [json.dumps({**good[0], "labels": [1]}).encode(), json.dumps({**good[0], "v": 9}).encode()]
    sender = Sender(topic.bootstrap)
    sender.send(good[:200], 0, raw=bad)
    sender.send(good[200:], LAST_MS)
    sender.close()
    trainer = start()
    last = wait(lambda: (m := newest(tmp_path)).learned_until_ms >= LAST_MS and m, "learned_until")
    assert last.learned == learned_by(good)
    consumer = KafkaConsumer(bootstrap_servers=topic.bootstrap, consumer_timeout_ms=30_000)
    consumer.assign([TopicPartition("examples.dead", p) for p in range(topics.PARTITIONS)])
    consumer.seek_to_beginning()
    dead = [json.loads(m.value) for m in islice(consumer, len(bad))]
    consumer.close()
    assert sorted(base64.b64decode(d["message"]) for d in dead) == sorted(bad)
    for d in dead:
        assert d["reason"] and d["topic"] == "examples" and d["size"] == len(base64.b64decode(d["message"]))
    counted = f"minutehand_trainer_dead_examples {float(len(bad))}"  # the gauges move each second
    wait(lambda: counted in trainer.get("/metrics")[1], counted)
    assert trainer.end() == 0


def test_what_was_read_is_committed_at_the_end_and_an_idle_stream_makes_no_delta(
    topic: Broker, start: Callable[..., Process], tmp_path: Path
) -> None:
    trainer = start("--sync-every-ms", "3600000")
    wait(lambda: trainer.get("/healthz")[0] == 200, "the trainer to be ready")
    sender = Sender(topic.bootstrap)
    sender.send(RECORDS[:300], 0)
    wait(lambda: "lag_records 300.0" in trainer.get("/metrics")[1], "all to be read")
    assert newest(tmp_path).seq == 0
    assert trainer.end() == 0
    assert (newest(tmp_path).seq, newest(tmp_path).learned) == (1, learned_by(RECORDS[:300]))

    trainer = start()
    wait(lambda: trainer.get("/healthz")[0] == 200, "the trainer to be ready")
    sender.send([], LAST_MS - 1)  # behind what was learned before: nothing to say
    read = wait(lambda: _lag(trainer) == 0 and trainer, "the progress to be read")
    sender.close()
    assert read.end() == 0
    assert newest(tmp_path).seq == 1


def _lag(trainer: Process) -> float:
    lines = trainer.get("/metrics")[1].splitlines()
    return next((float(x.split()[1]) for x in lines if x.startswith("minutehand_trainer_lag_records")), -1)


def test_a_broker_that_stops_is_waited_for(topic: Broker, start: Callable[..., Process], tmp_path: Path) -> None:
    sender, trainer = Sender(topic.bootstrap), start()
    sender.send(RECORDS[:300], 0)
    wait(lambda: newest(tmp_path).seq >= 1, "a delta")
    assert topic.process is not None
    os.kill(topic.process.pid, signal.SIGSTOP)
    try:
        wait(lambda: trainer.get("/healthz")[0] == 200, "the trainer still to answer")
        time.sleep(3)  # longer than every wait of the trainer's loop
        assert trainer.popen.poll() is None
    finally:
        os.kill(topic.process.pid, signal.SIGCONT)
    sender.send(RECORDS[300:600], LAST_MS)
    sender.close()
    last = wait(lambda: (m := newest(tmp_path)).learned_until_ms >= LAST_MS and m, "learned_until")
    assert last.learned == learned_by(RECORDS[:600])
    assert trainer.end() == 0


def test_without_a_broker_it_says_why_it_is_not_ready(tmp_path: Path) -> None:
    batch.main(["--source", SOURCE, "--log", str(tmp_path / "log"), "--untrained"])
    trainer = Process(f"127.0.0.1:{free_port()}", tmp_path / "log", tmp_path)
    try:
        code, text = wait(lambda: (a := trainer.get("/healthz"))[1].startswith("waiting") and a, "the reason")
        assert code == 503 and "waiting for kafka 127.0.0.1" in text
        lineage = Log(tmp_path / "log").serving()
        assert lineage is not None
        with pytest.raises(LogBusy):
            Writer(Log(tmp_path / "log"), lineage)
        second = Process("127.0.0.1:1", tmp_path / "log", tmp_path)
        assert second.popen.wait(60) == 2
        assert f"held by process {trainer.popen.pid}: a lineage has one writer" in second.out.read_text()
    finally:
        assert trainer.end() == 0


def test_positions_of_another_topic_are_refused(topic: Broker, start: Callable[..., Process], tmp_path: Path) -> None:
    sender, trainer = Sender(topic.bootstrap), start()
    sender.send(RECORDS[:100], 0)
    wait(lambda: newest(tmp_path).seq >= 1, "a delta")
    sender.close()
    assert trainer.end() == 0
    from streaming.reader import ForeignTopic
    from training.learn.feed import Feed

    positions = newest(tmp_path).positions
    Feed(topic.bootstrap, DECLARATION, positions).close()
    for field in ("cluster", "topic_id"):
        with pytest.raises(ForeignTopic, match=f"{field} is .* but the log's positions are of 'other'"):
            Feed(topic.bootstrap, DECLARATION, {**positions, field: "other"})


def test_a_log_without_a_lineage_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from training.learn import online

    assert online.main(["--source", SOURCE, "--log", str(tmp_path), "--kafka", "127.0.0.1:1"]) == 2
    assert "serves no lineage yet" in caplog.text
    with pytest.raises(LogError):
        Log(tmp_path).chain("000001-00000000")
