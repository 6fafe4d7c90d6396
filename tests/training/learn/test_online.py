"""The online trainer as a process on a real broker: what it learns is what was sent, once, whatever is killed."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

from delta_log.log import Log
from delta_log.manifest import LogBusy, LogError, Manifest
from delta_log.verification import verify
from delta_log.writer import Writer
from streaming import topics
from streaming.source import load
from tests.support.broker import Broker
from tests.support.feeding import Sender, examples, learned_by
from tests.support.metrics import get, metric, ready
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.wait import until
from training.learn import batch_pass as batch
from training.learn import online

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
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    there = [t for t in ("examples", "examples.dead") if t in admin.list_topics()]
    admin.delete_topics(there)
    until(lambda: not set(there) & set(admin.list_topics()), "the old topics to go")
    admin.close()
    topics.create(broker.bootstrap)
    return broker


class Trainer(Process):
    """`python -m training.learn.online` on a free port."""

    def __init__(self, bootstrap: str, log: Path, folder: Path, *more: str) -> None:
        self.port = free_port()
        where = ("--source", SOURCE, "--log", str(log), "--kafka", bootstrap, "--port", str(self.port))
        output = folder / f"trainer-{self.port}.log"
        super().__init__(output, "training.learn.online", *where, "--sync-every-ms", "300", "--digest", *more)

    def get(self, path: str) -> tuple[int, str]:
        return get(self.port, path)

    def is_ready(self) -> bool:
        return ready(self.port)


@pytest.fixture
def start(topic: Broker, tmp_path: Path) -> Callable[..., Trainer]:
    batch.main(["--source", SOURCE, "--log", str(tmp_path / "log"), "--untrained"])
    return lambda *more: Trainer(topic.bootstrap, tmp_path / "log", tmp_path, *more)


def newest(path: Path) -> Manifest:
    log = Log(path / "log")
    lineage = log.serving()
    assert lineage is not None
    base, deltas = log.chain(lineage)
    return deltas[-1] if deltas else base


def lag(trainer: Trainer) -> float:
    return metric(trainer.port, "minutehand_trainer_lag_records")


def test_all_is_learned_once_through_two_kills(topic: Broker, start: Callable[..., Trainer], tmp_path: Path) -> None:
    sender, third = Sender(topic.bootstrap), len(RECORDS) // 3
    for k in range(3):
        trainer = start("--base-every", "3", "--dense-every", "2")
        part = RECORDS[k * third : (k + 1) * third if k < 2 else None]
        for at in range(0, len(part), 500):
            sender.send(part[at : at + 500], progress_ms=LAST_MS if k == 2 and at + 500 >= len(part) else 0)
        seq = newest(tmp_path).seq
        if k < 2:
            until(lambda s=seq: newest(tmp_path).seq > s, "a delta")  # then killed in the middle of what follows
            trainer.kill()
    sender.close()
    last = until(lambda: (m := newest(tmp_path)).learned_until_ms >= LAST_MS and m, "learned_until")
    assert last.learned == learned_by(RECORDS)
    assert trainer.end() == 0
    log = Log(tmp_path / "log")
    assert verify(log, last.lineage) == []
    assert newest(tmp_path).learned == learned_by(RECORDS)
    kinds = {kind: 0 for kind in ("positive", "negative")}
    base, deltas = log.chain(last.lineage, log.seqs(last.lineage, "base")[0])
    assert {m.seq - m.dense_seq for m in deltas if m.metrics["examples"]} <= {0, 1}, "dense weights in each second one"
    if base.seq == 0:
        for manifest in deltas:
            for kind, bins in manifest.written_ms.items():
                kinds[kind] += sum(bins.values())
        assert kinds == {kind: sum(r["kind"] == kind for r in RECORDS) for kind in kinds}


def test_bad_lines_are_kept_aside_and_the_rest_is_learned(
    topic: Broker, start: Callable[..., Trainer], tmp_path: Path
) -> None:
    good = RECORDS[:400]
    bad = [b"", b"{", b"null", b'"x"', b"\xff\xfe", b'{"v": 1}', json.dumps({**good[0], "pi": 0}).encode()]
    bad += [json.dumps({**good[0], "labels": [1]}).encode(), json.dumps({**good[0], "v": 9}).encode()]
    sender = Sender(topic.bootstrap)
    sender.send(good[:200], 0, raw=bad)
    sender.send(good[200:], LAST_MS)
    sender.close()
    trainer = start("--dense-rate", "0")
    last = until(lambda: (m := newest(tmp_path)).learned_until_ms >= LAST_MS and m, "learned_until")
    assert last.learned == learned_by(good)
    assert last.seq > last.dense_seq == 0 and "dense.arrow" not in last.files
    dead = dead_letters(topic, len(bad))
    assert sorted(base64.b64decode(d["message"]) for d in dead) == sorted(bad)
    for d in dead:
        assert d["reason"] and d["topic"] == "examples" and d["size"] == len(base64.b64decode(d["message"]))
    dead_examples = "minutehand_trainer_dead_examples"  # the gauges move each second
    until(lambda: metric(trainer.port, dead_examples) == len(bad), "all bad lines are counted")
    assert trainer.end() == 0


def dead_letters(topic: Broker, count: int) -> list[dict[str, Any]]:
    """Reads the first `count` records of examples.dead."""
    consumer = KafkaConsumer(bootstrap_servers=topic.bootstrap, consumer_timeout_ms=30_000)
    consumer.assign([TopicPartition("examples.dead", p) for p in range(topics.PARTITIONS)])
    consumer.seek_to_beginning()
    letters = [json.loads(m.value) for m in islice(consumer, count)]
    consumer.close()
    return letters


def test_a_dead_letter_that_no_broker_takes_holds_up_deltas_and_nothing_else(
    topic: Broker, start: Callable[..., Trainer], tmp_path: Path
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=topic.bootstrap)
    admin.delete_topics(["examples.dead"])
    admin.close()
    sender, trainer = Sender(topic.bootstrap), start()
    until(trainer.is_ready, "the trainer to be ready", process=trainer)
    sender.send(RECORDS[:300], 0, raw=[b"{"])
    reason = until(lambda: (a := trainer.get("/healthz"))[0] == 503 and a[1], "the reason", process=trainer)
    assert reason.startswith("no delta can be written: ")
    sender.send(RECORDS[300:600], LAST_MS)
    sender.close()
    learned = "minutehand_trainer_examples_total"
    until(lambda: metric(trainer.port, learned) == 600, "it to learn on", process=trainer)
    assert metric(trainer.port, "minutehand_trainer_errors_total") > 0 and newest(tmp_path).seq == 0

    topics.create(topic.bootstrap)
    last = until(lambda: (m := newest(tmp_path)).learned_until_ms >= LAST_MS and m, "a delta", process=trainer)
    assert last.learned == learned_by(RECORDS[:600])
    assert base64.b64decode(dead_letters(topic, 1)[0]["message"]) == b"{"
    until(trainer.is_ready, "the trainer to be ready again", process=trainer)
    assert trainer.text().count("no delta can be written") == 1
    assert trainer.end() == 0


def test_it_follows_serving_in_the_same_process(topic: Broker, start: Callable[..., Trainer], tmp_path: Path) -> None:
    sender, trainer, log = Sender(topic.bootstrap), start(), Log(tmp_path / "log")
    sender.send(RECORDS[:300], 0)
    until(lambda: newest(tmp_path).seq >= 1, "a delta", process=trainer)
    first = newest(tmp_path)
    batch.main(["--source", SOURCE, "--log", str(log.path), "--untrained"])  # SERVING moves to a lineage of its own
    sender.send(RECORDS[300:], LAST_MS)
    sender.close()
    until(lambda: newest(tmp_path).learned_until_ms >= LAST_MS, "the new lineage", process=trainer)
    second = newest(tmp_path)
    assert second.lineage != first.lineage and second.learned == learned_by(RECORDS)
    Writer(log, first.lineage).close()  # its lock is free
    with pytest.raises(LogBusy, match=f"held by process {trainer.pid}"):
        Writer(log, second.lineage)
    until(lambda: metric(trainer.port, "minutehand_trainer_seq") == newest(tmp_path).seq, "the metrics of the new one")
    assert trainer.end() == 0
    assert [verify(log, lineage) for lineage in (first.lineage, second.lineage)] == [[], []]


def test_what_was_read_is_committed_at_the_end_and_an_idle_stream_makes_no_delta(
    topic: Broker, start: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = start("--sync-every-ms", "3600000")
    until(trainer.is_ready, "the trainer to be ready")
    sender = Sender(topic.bootstrap)
    sender.send(RECORDS[:300], 0)
    until(lambda: lag(trainer) == 300, "all to be read")
    assert newest(tmp_path).seq == 0
    assert trainer.end() == 0
    assert (newest(tmp_path).seq, newest(tmp_path).learned) == (1, learned_by(RECORDS[:300]))

    trainer = start()
    until(trainer.is_ready, "the trainer to be ready")
    sender.send([], LAST_MS - 1)  # behind what was learned before: nothing to say
    until(lambda: lag(trainer) == 0, "the progress to be read")
    sender.close()
    assert trainer.end() == 0
    assert newest(tmp_path).seq == 1


def test_a_broker_that_stops_is_waited_for(topic: Broker, start: Callable[..., Trainer], tmp_path: Path) -> None:
    sender, trainer = Sender(topic.bootstrap), start()
    sender.send(RECORDS[:300], 0)
    until(lambda: newest(tmp_path).seq >= 1, "a delta")
    topic.process.send(signal.SIGSTOP)
    try:
        until(trainer.is_ready, "the trainer still to answer")
        time.sleep(3)  # longer than every wait of the trainer's loop
        assert trainer.code is None
    finally:
        topic.process.send(signal.SIGCONT)
    sender.send(RECORDS[300:600], LAST_MS)
    sender.close()
    last = until(lambda: (m := newest(tmp_path)).learned_until_ms >= LAST_MS and m, "learned_until")
    assert last.learned == learned_by(RECORDS[:600])
    assert trainer.end() == 0


def test_without_a_broker_it_says_why_it_is_not_ready(tmp_path: Path) -> None:
    batch.main(["--source", SOURCE, "--log", str(tmp_path / "log"), "--untrained"])
    trainer = Trainer(f"127.0.0.1:{free_port()}", tmp_path / "log", tmp_path)
    try:
        code, text = until(lambda: (a := trainer.get("/healthz"))[1].startswith("waiting") and a, "the reason")
        assert code == 503 and "waiting for kafka 127.0.0.1" in text
        lineage = Log(tmp_path / "log").serving()
        assert lineage is not None
        with pytest.raises(LogBusy):
            Writer(Log(tmp_path / "log"), lineage)
        second = Trainer("127.0.0.1:1", tmp_path / "log", tmp_path)
        assert second.wait() == 2
        assert f"held by process {trainer.pid}: a lineage has one writer" in second.text()
    finally:
        assert trainer.end(seconds=online.END_WITHIN_S + 20) == 0


def test_positions_of_another_topic_are_refused(topic: Broker, start: Callable[..., Trainer], tmp_path: Path) -> None:
    sender, trainer = Sender(topic.bootstrap), start()
    sender.send(RECORDS[:100], 0)
    until(lambda: newest(tmp_path).seq >= 1, "a delta")
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
    assert online.main(["--source", SOURCE, "--log", str(tmp_path), "--kafka", "127.0.0.1:1"]) == 2
    assert "serves no lineage yet" in caplog.text
    with pytest.raises(LogError):
        Log(tmp_path).chain("000001-00000000")
