"""The archive's writer under load: the processor time of an event, from Kafka to durable Parquet.

    python -m benchmarks.load.archive              # prints its figures; benchmarks.profiles writes them

The events have KuaiRand's features and tasks with drawn values: 0.8 actions an impression. An event is an impression or
an action. The writer keeps the examples that the join makes of them, too, in the same time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaProducer

from streaming import topics
from streaming.archive.archive import TOPICS
from streaming.archive.archiver import PATIENCE_MS, Archiver, Gauges
from streaming.archive.commits import Writer, read
from streaming.event_time import EventTime
from streaming.publisher import action, impression
from streaming.reader import Reader
from streaming.source import Exposure
from streaming.sources.kuairand import declaration
from tests.support.broker import Broker
from tests.support.feeding import examples

EVENTS = 100_000
ACTED = {"click": 0.45, "long_view": 0.3, "like": 0.03, "profile_enter": 0.02}
FLUSH_MS, FLUSH_ROWS = 10_000, 50_000


def exposures() -> Iterator[Exposure]:
    """Exposures of now, a millisecond apart."""
    rng = np.random.default_rng(1)
    now_ms = time.time_ns() // 1_000_000
    tags = rng.integers(1, 70, (1000, 3)).tolist()
    for number in range(sys.maxsize):
        user, video = int(rng.integers(100_000)), int(rng.zipf(1.2) % 10_000)
        features: dict[str, Any] = {}
        for f in declaration.features:
            if f.kind == "ids":
                features[f.name] = tags[video % 1000]
            else:
                features[f.name] = video % 997 if f.kind == "id" else round(float(rng.random()), 4)
        drawn = rng.random(len(ACTED))
        ts_ms = now_ms + number % 60_000
        outcomes = {t: ts_ms + 900 for (t, share), x in zip(ACTED.items(), drawn, strict=True) if x < share}
        yield Exposure(f"k{number}", user, video, ts_ms, features | {"user": user, "video": video}, outcomes)


def messages(events: int) -> Iterator[tuple[str, bytes]]:
    """Topic and message: so many events, each list of them followed by its examples."""
    source, sent = exposures(), 0
    scores = {task: 0.125 for task in declaration.tasks}
    while sent < events:
        shown = list(islice(source, 100))
        for e in shown:
            sent += 1 + len(e.outcomes)
            event = impression(
                e.impression_id, "r1", e.user_id, e.item_id, e.ts_ms, 3, e.features, scores, "000001-0a1b2c3d", 12
            )
            yield topics.IMPRESSIONS, _json(event)
            for task, at_ms in e.outcomes.items():
                yield topics.ACTIONS, _json(action(e.impression_id, task, at_ms))
        for example in examples(shown, declaration):
            yield topics.EXAMPLES, _json(example | {"scores": scores})


def _json(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def send(bootstrap: str, events: int) -> dict[str, int]:
    """Writes the backlog. Returns the number of records of each topic."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, batch_size=2**17, compression_type="lz4")
    sent = dict.fromkeys(TOPICS, 0)
    for topic, message in messages(events):
        producer.send(topic, message, partition=sent[topic] % topics.PARTITIONS)
        sent[topic] += 1
    producer.close()
    return sent


def measure(events: int = EVENTS) -> dict[str, Any]:
    """Archives a backlog of `events`, and what the join makes of them."""
    with tempfile.TemporaryDirectory(prefix="minutehand-archive-") as name, Broker() as broker:
        topics.create(broker.bootstrap)
        sent = send(broker.bootstrap, events)
        with Writer(Path(name), "kuairand", declaration) as writer:
            reader = Reader(broker.bootstrap, TOPICS, {}, "the benchmark's", "run it again", PATIENCE_MS)
            archiver = Archiver(reader, writer, declaration, EventTime(), FLUSH_MS, FLUSH_ROWS, Gauges())
            begun = time.process_time()
            while sum(reader_read(reader).values()) < sum(sent.values()):
                archiver.turn()
            archiver.commit()
            cpu_s = time.process_time() - begun
            reader.close()
        newest = read(Path(name))
        assert newest is not None and sum(f.rows for f in newest[1].values()) == sum(sent.values())
        size = sum(f.bytes for f in newest[1].values())
    count = sent[topics.IMPRESSIONS] + sent[topics.ACTIONS]
    return {
        "events": count,
        "examples": sent[topics.EXAMPLES],
        "us_per_event": round(1e6 * cpu_s / count, 2),
        "events_per_s_core": round(count / cpu_s),
        "records_per_s_core": round(sum(sent.values()) / cpu_s),
        "commits": newest[0].commit + 1,
        "bytes_per_record": round(size / sum(sent.values()), 1),
    }


def reader_read(reader: Reader) -> dict[str, int]:
    """Topic -> the records that were read. (A backlog that no transaction wrote has no offsets without one.)"""
    return {topic: sum(map(int, of["offsets"].values())) for topic, of in reader.positions().items()}


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:])), indent=1))
