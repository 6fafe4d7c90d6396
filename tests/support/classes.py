"""Archives of the classes that Kafka and the join load, for tests/support/bin/java: a JVM then starts in half the time.

python -m tests.support.classes      writes build/classes/kafka.jsa and join.jsa by a run of both, if one is missing
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streaming import topics
from streaming.declaration import Declaration, Feature
from tests.support import PROJECT, replay
from tests.support.broker import Broker, formatted
from tests.support.join_process import JoinProcess
from tests.support.wait import until

FOLDER = PROJECT / "build/classes"
DECLARATION = Declaration("test", (Feature("user", "id"),), ("click",), "click", 60_000)
IMPRESSION = {"impression_id": "i", "user_id": 1, "item_id": 1, "ts_ms": 1000, "features": {"user": 1}}
CLICK = {"impression_id": "i", "user_id": 1, "item_id": 1, "ts_ms": 2000, "action": "click"}


def join_once(bootstrap: str) -> None:
    """Sends an impression with its click and two heartbeats; returns when the join has written an example."""
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    producer.send("impressions", json.dumps(IMPRESSION).encode(), key=b"i")
    producer.send("actions", json.dumps(CLICK).encode(), key=b"i")
    for heartbeat_ms in (2000, 200_000):
        message = json.dumps({"heartbeat_ms": heartbeat_ms, "lease": replay.LEASE}).encode()
        for topic in ("impressions", "actions"):
            for partition in range(topics.PARTITIONS):
                producer.send(topic, message, partition=partition)
    producer.flush()
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest")
    consumer.assign([TopicPartition("examples", p) for p in range(topics.PARTITIONS)])
    until(lambda: consumer.poll(200), "an example", 60)
    producer.close()
    consumer.close()


def main() -> None:
    names = ("kafka", "join")
    if all((FOLDER / f"{name}.jsa").exists() for name in names):
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    options = os.environ.get("JDK_JAVA_OPTIONS", "")
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        made = {name: Path(folder, f"{name}.jsa") for name in names}
        broker = Broker()
        formatted()
        os.environ["JDK_JAVA_OPTIONS"] = f"{options} -XX:ArchiveClassesAtExit={made['kafka']}"
        with broker:
            topics.create(broker.bootstrap)
            os.environ["JDK_JAVA_OPTIONS"] = f"{options} -XX:ArchiveClassesAtExit={made['join']}"
            join = JoinProcess(Path(folder, "join"), DECLARATION.to_json(), broker.bootstrap)
            join.start()
            join_once(broker.bootstrap)
            join.process.end()
            broker.process.end()
        for name in names:
            made[name].rename(FOLDER / f"{name}.jsa")


if __name__ == "__main__":
    main()
