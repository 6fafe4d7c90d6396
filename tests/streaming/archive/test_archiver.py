"""The archiver as a process on a real broker: what it keeps is what was sent, once, through kills."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streaming import topics
from streaming.archive.archive import TOPICS, Archive
from streaming.archive.columns import TIME
from streaming.archive.commits import read
from streaming.publisher import action, impression
from streaming.source import load
from tests.support.broker import Broker
from tests.support.feeding import Sender, examples
from tests.support.metrics import get, metric
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.replay import DISORDER_MS, FLAGS, LEASE
from tests.support.wait import until

SOURCE = "simulator?seed=5&minutes=5"
DECLARATION = load(SOURCE).declaration
LIVE = list(islice(load(SOURCE).live(), 1500))
RECORDS = list(examples(LIVE, DECLARATION))
BEGIN_MS, LAST_MS = LIVE[0].ts_ms, LIVE[-1].ts_ms + 2 * DECLARATION.window_ms


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        topics.create(running.bootstrap)
        yield running


class ArchiverProcess(Process):
    """`python -m streaming.archive.archiver` on a free port."""

    def __init__(self, bootstrap: str, to: Path, log: Path, *more: str) -> None:
        self.port = free_port()
        where = ("--source", SOURCE, "--kafka", bootstrap, "--to", str(to), "--port", str(self.port))
        super().__init__(log, "streaming.archive.archiver", *where, *FLAGS, *more)

    def get(self, path: str) -> tuple[int, str]:
        return get(self.port, path)


class Events:
    """Both raw topics, and examples through the join's transactions."""

    def __init__(self, bootstrap: str) -> None:
        self._producer, self._examples = KafkaProducer(bootstrap_servers=bootstrap), Sender(bootstrap)

    def send(self, part: int, parts: int, until_ms: int) -> None:
        for k, e in list(enumerate(LIVE))[part::parts]:
            shown = impression(e.impression_id, "r", e.user_id, e.item_id, e.ts_ms, k, e.features, {}, "l", k)
            self._put("impressions", shown)
            for task, at_ms in e.outcomes.items():
                self._put("actions", action(e.impression_id, task, at_ms, k / 4))
        for topic in ("impressions", "actions"):
            for partition in range(topics.PARTITIONS):
                self._producer.send(
                    topic, json.dumps({"heartbeat_ms": until_ms, "lease": LEASE}).encode(), partition=partition
                )
        self._producer.flush()
        self._examples.send(RECORDS[part::parts], until_ms)

    def _put(self, topic: str, event: dict[str, Any]) -> None:
        self._producer.send(topic, json.dumps(event).encode(), key=event["impression_id"].encode())

    def raw(self, topic: str, *lines: bytes) -> None:
        for line in lines:
            self._producer.send(topic, line, partition=0)
        self._producer.flush()

    def close(self) -> None:
        self._producer.close()
        self._examples.close()


def oracle(bootstrap: str, topic: str) -> set[tuple[int, int]]:
    """(partition, offset) of every record but heartbeats that a read_committed reader sees."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", consumer_timeout_ms=2000)
    consumer.assign([TopicPartition(topic, p) for p in range(topics.PARTITIONS)])
    consumer.seek_to_beginning()
    found = {(m.partition, m.offset) for m in consumer if m.value != b"{broken" and b"heartbeat_ms" not in m.value}
    consumer.close()
    return found


def test_each_record_once_through_kills(broker: Broker, tmp_path: Path) -> None:
    to, log, events = tmp_path / "archive", tmp_path / "archiver.log", Events(broker.bootstrap)
    archive, parts = Archive(to), 4
    for part in range(parts):
        archiver = ArchiverProcess(broker.bootstrap, to, log, "--flush-ms", "100", "--flush-rows", "200")
        commits = read(to)[0].commit if read(to) else -1
        events.send(part, parts, LAST_MS if part == parts - 1 else BEGIN_MS)
        if part == 1:
            events.raw("actions", b"{broken")
        if part < parts - 1:  # killed in the middle of what follows a commit
            until(lambda n=commits: (found := read(to)) and found[0].commit > n, "a commit")
            archiver.kill()
    events.close()
    ends = {
        "examples": LAST_MS,
        **dict.fromkeys(("impressions", "actions"), LAST_MS - DISORDER_MS - 1),
    }
    until(lambda: {t: archive.until_ms(t) for t in TOPICS} == ends, "all of it to be archived")
    assert archiver.get("/healthz") == (200, "ok\n")
    until(lambda: metric(archiver.port, "minutehand_archive_until_ms", topic="examples") == LAST_MS, "the gauge")
    assert archiver.end() == 0
    for topic in TOPICS:
        table = archive.read(topic, BEGIN_MS, ends[topic])
        places = list(zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True))
        assert len(places) == len(set(places)) and set(places) == oracle(broker.bootstrap, topic)
        times = table[TIME[topic]].to_pylist()
        assert times == sorted(times)
    kept = archive.read("examples", BEGIN_MS, LAST_MS).to_pylist()
    assert sorted((r["impression_id"], r["kind"], r["event_ms"]) for r in kept) == sorted(
        (r["impression_id"], r["kind"], r["event_ms"]) for r in RECORDS
    )
    values = archive.read("actions", BEGIN_MS, ends["actions"]).select(["impression_id", "value"]).to_pylist()
    place = {e.impression_id: k for k, e in enumerate(LIVE)}
    assert all(row["value"] == place[row["impression_id"]] / 4 for row in values)
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, consumer_timeout_ms=30_000)
    consumer.assign([TopicPartition("actions.dead", p) for p in range(topics.PARTITIONS)])
    consumer.seek_to_beginning()
    buried = json.loads(next(consumer).value)
    consumer.close()
    assert buried["topic"] == "actions" and buried["size"] == len(b"{broken") and buried["reason"]


def test_another_broker_and_none_are_said(broker: Broker, tmp_path: Path) -> None:
    alone = ArchiverProcess(f"127.0.0.1:{free_port()}", tmp_path / "b", tmp_path / "log")  # it takes its time to say so
    first = ArchiverProcess(broker.bootstrap, tmp_path / "a", tmp_path / "log", "--flush-ms", "100")
    until(lambda: read(tmp_path / "a"), "a first commit")
    assert first.end() == 0
    manifest = sorted((tmp_path / "a" / "manifests").iterdir())[-1]
    manifest.write_text(manifest.read_text().replace(read(tmp_path / "a")[0].positions["actions"]["topic_id"], "other"))
    foreign = ArchiverProcess(broker.bootstrap, tmp_path / "a", tmp_path / "log")
    assert foreign.wait() == 2
    assert "but the archive's positions are of 'other': begin a new folder" in (tmp_path / "log").read_text()
    until(lambda: alone.get("/healthz")[1].startswith("waiting for kafka"), "the reason")
    assert alone.end() == 0


def test_it_ends_soon_when_the_broker_is_gone(broker: Broker, tmp_path: Path) -> None:
    """The last test of this module: the broker does not come back. Dead letters that wait for it are read again."""
    log, events = tmp_path / "log", Events(broker.bootstrap)
    archiver = ArchiverProcess(broker.bootstrap, tmp_path / "a", log, "--flush-ms", "600000")
    until(lambda: archiver.get("/healthz")[0] == 200, "the archiver")
    events.raw("actions", *[b"{broken"] * 5000)
    events.close()
    until(lambda: log.read_text().count("cannot be used") > 1, "the first dead letters")
    broker.process.kill()
    assert archiver.end(seconds=25) == 0  # the producer alone would wait for half a minute
    assert "ended without a last commit" in log.read_text() and not read(tmp_path / "a")
