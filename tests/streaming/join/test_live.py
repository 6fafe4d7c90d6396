"""Live event time with real servers of an app: the pairs are those of the offline join, whatever their clocks say."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streaming import topics
from tests.support.app_server import PARTITIONS, declaration
from tests.support.broker import Broker
from tests.support.join_process import JoinProcess
from tests.support.process import Process
from tests.support.wait import until

pytestmark = pytest.mark.timeout(900)

WINDOW_MS, DISORDER_MS = 4000, 1500
FUTURE = 2_015_360_000_000
WRONG = [b'{"heartbeat_ms": %d}' % FUTURE, b'{"heartbeat_ms": 0}', b'{"heartbeat_ms": 1.5}', b'{"heartbeat_ms": "now"}',
         b'{"heartbeat_ms": %d, "lease": "mine"}' % FUTURE]  # fmt: skip


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        topics.create(running.bootstrap, PARTITIONS)
        yield running


def records(broker: Broker, topic: str) -> Iterator[Any]:
    """All committed records of a topic."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=None, isolation_level="read_committed")
    places = [TopicPartition(topic, p) for p in range(PARTITIONS)]
    consumer.assign(places)
    ends = consumer.end_offsets(places)
    consumer.seek_to_beginning()
    while any(consumer.position(place) < ends[place] for place in places):
        for batch in consumer.poll(200).values():
            yield from batch
    consumer.close()


def offline(broker: Broker) -> set[tuple[str, str, int]]:
    """(impression, task, label) by the rules of docs/example.md, from what the topics hold and nothing else."""
    shown: dict[str, int] = {}
    for record in records(broker, topics.IMPRESSIONS):
        event = json.loads(record.value)
        if "heartbeat_ms" not in event and abs(event["ts_ms"] - record.timestamp) <= DISORDER_MS:
            shown.setdefault(event["impression_id"], event["ts_ms"])
    clicked = set()
    for record in records(broker, topics.ACTIONS):
        event = json.loads(record.value)
        if "heartbeat_ms" in event or event["ts_ms"] > record.timestamp + DISORDER_MS:
            continue
        at_ms = shown.get(event["impression_id"])
        due = max(event["ts_ms"], record.timestamp - DISORDER_MS)
        if at_ms is not None and at_ms <= event["ts_ms"] and due <= at_ms + WINDOW_MS:
            clicked.add((event["impression_id"], event["action"]))
    return {(key, task, int((key, task) in clicked)) for key in shown for task in ("click", "like")}


def joined(broker: Broker) -> list[tuple[str, str, int]]:
    pairs = []
    for record in records(broker, topics.EXAMPLES):
        example = json.loads(record.value)
        if "heartbeat_ms" not in example:
            for task, label, weight in zip(("click", "like"), example["labels"], example["weights"], strict=True):
                if weight:
                    pairs.append((example["impression_id"], task, int(label)))
    return pairs


def progress(broker: Broker) -> int:
    """The event time of the join, as all partitions of `examples` have it."""
    newest = dict.fromkeys(range(PARTITIONS), -1)
    for record in records(broker, topics.EXAMPLES):
        message = json.loads(record.value)
        newest[record.partition] = max(newest[record.partition], message.get("heartbeat_ms", -1))
    return min(newest.values())


def test_eight_servers_whose_clocks_differ_and_that_die_are_joined_as_offline(broker: Broker, tmp_path: Path) -> None:
    job = JoinProcess(
        tmp_path / "join", declaration(WINDOW_MS).to_json(), broker.bootstrap, lease="", max_disorder_ms=DISORDER_MS
    )
    job.start()
    job.ready()
    clock = Process(tmp_path / "clock.log", "streaming.clock", "--kafka", broker.bootstrap)
    offsets = [-DISORDER_MS + 300, -900, -400, 0, 0, 400, 900, DISORDER_MS - 300]

    def server(number: int) -> Process:
        words = (broker.bootstrap, f"s{number}", str(offsets[number]), str(WINDOW_MS))
        return Process(tmp_path / f"server-{number}.log", "tests.support.app_server", *words)

    servers = [server(number) for number in range(len(offsets))]
    until(lambda: sum(1 for _ in records(broker, topics.ACTIONS)) > 300, "all are under way")
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    for number in range(20):  # stamps of the producer, and heartbeats that nobody should believe
        topic = (topics.IMPRESSIONS, topics.ACTIONS)[number % 2]
        producer.send(topic, WRONG[number % len(WRONG)], partition=number % PARTITIONS, timestamp_ms=FUTURE)
    producer.flush()
    for number in (0, 3, 7):
        servers[number].kill()
    job.process.kill()
    job.start()
    seen = len(joined(broker))
    until(lambda: len(joined(broker)) > seen + 200, "the join goes on", process=job.process)
    for number in (0, 3, 7):
        servers[number] = server(number)
    seen = len(joined(broker))
    until(lambda: len(joined(broker)) > seen + 500, "and with those that came back", process=job.process)
    for each in servers:
        each.kill()
    end_ms = time.time_ns() // 1_000_000 + 2 * DISORDER_MS + WINDOW_MS
    until(lambda: progress(broker) > end_ms, "all windows are over", process=job.process)
    job.process.end()
    assert clock.end() == 0, clock.tail()

    pairs, expected = joined(broker), offline(broker)
    assert len(pairs) == len(set(pairs)), "no pair is written twice"
    assert set(pairs) == expected
    assert {label for _, _, label in pairs} == {0, 1}
    late = sum(1 for _ in records(broker, topics.LATE[topics.IMPRESSIONS]))
    assert late <= len(expected) // 20, "honest servers lose next to nothing"


def test_topics_whose_stamps_are_the_producers_are_refused(tmp_path: Path) -> None:
    from kafka.admin import KafkaAdminClient, NewTopic

    with Broker() as other:
        admin = KafkaAdminClient(bootstrap_servers=other.bootstrap)
        admin.create_topics([NewTopic(topics.IMPRESSIONS, 1, 1)])
        admin.close()
        job = JoinProcess(tmp_path / "join", declaration(WINDOW_MS).to_json(), other.bootstrap, lease="")
        topics_ = topics.create(other.bootstrap)
        assert topics.IMPRESSIONS not in topics_, "it was there"
        job.start()
        job.ready()  # topics.create has set the broker's stamps
        job.process.end()
        from kafka.admin import ConfigResource, ConfigResourceType

        admin = KafkaAdminClient(bootstrap_servers=other.bootstrap)
        admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, topics.IMPRESSIONS, {"message.timestamp.type": "CreateTime"})]
        )
        admin.close()
        job.start()
        assert job.process.wait(60) == 2
        assert "topic impressions has message.timestamp.type=CreateTime: allowed is LogAppendTime" in job.process.text()
