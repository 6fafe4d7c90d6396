"""The publisher on a real broker: where good and bad events go. What is bad: tests/streaming/contract."""

import base64
import hashlib
import json
import time

import pytest
from kafka.errors import KafkaTimeoutError

from streaming.contract.schema import MAX_MESSAGE_BYTES
from streaming.dead_letters import DEAD_BYTES
from streaming.publisher import Publisher, Stopped, action, impression
from streaming.sources.simulator import declaration
from streaming.topics import ACTIONS, DEAD, IMPRESSIONS, create
from tests.support.broker import Broker
from tests.support.replay import LEASE

FEATURES = {"viewer": 1, "topics": [2], "age": 0.5}
SHOWN = impression("i", "r", 1, 2, 3, 0, FEATURES, {"watch": 0.5}, "l", 4)
DONE = action("i", "watch", 5)


def test_a_broker_that_is_gone_can_be_given_up_on():
    with Broker() as broker:
        create(broker.bootstrap)
        publisher = Publisher(broker.bootstrap, declaration)
        assert publisher.send(ACTIONS, DONE)
        publisher.flush()
        hasty = Publisher(broker.bootstrap, declaration, within_s=0.5)
        assert hasty.send(ACTIONS, DONE)
        hasty.flush()
    publisher.send(ACTIONS, DONE)
    publisher.stop.set()
    with pytest.raises(Stopped, match="1 events"):
        publisher.flush()
    publisher.close()
    hasty.send(ACTIONS, DONE)
    with pytest.raises(KafkaTimeoutError):
        hasty.flush()
    hasty.close()


def test_on_a_broker_bad_and_oversized_events_go_to_the_dead_topic():
    from kafka import KafkaConsumer, TopicPartition

    huge = SHOWN | {"features": FEATURES | {"note": "x" * 10_000_000}}
    partitions = [TopicPartition(t, p) for t in (IMPRESSIONS, ACTIONS, *DEAD.values()) for p in (0, 1)]
    found: dict[str, list[dict]] = {p.topic: [] for p in partitions}
    with Broker() as broker:
        create(broker.bootstrap)
        with Publisher(broker.bootstrap, declaration, lease=LEASE) as publisher:
            assert publisher.send(IMPRESSIONS, SHOWN) and publisher.send(ACTIONS, DONE)
            assert not publisher.send(IMPRESSIONS, huge)
            assert not publisher.send(ACTIONS, DONE | {"ts_ms": -3})
            for wrong in (9.5, -1, 10**16, "9"):
                with pytest.raises(ValueError, match="a heartbeat's heartbeat_ms is .*allowed"):
                    publisher.heartbeat(wrong)
            publisher.heartbeat(9)
            assert (publisher.sent, publisher.refused, publisher.heartbeats) == (2, 2, 4)
        consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        deadline = time.monotonic() + 60
        while sum(map(len, found.values())) < 8 and time.monotonic() < deadline:
            for partition, records in consumer.poll(200).items():
                found[partition.topic] += [json.loads(r.value) for r in records]
        consumer.close()
    beats = [{"heartbeat_ms": 9, "lease": LEASE}] * 2
    for topic, event in ((IMPRESSIONS, SHOWN), (ACTIONS, DONE)):
        assert sorted(found[topic], key=len, reverse=True) == [event, *beats]
    (dead,) = found[DEAD[IMPRESSIONS]]
    message = json.dumps(huge, separators=(",", ":")).encode()
    assert dead["kind"] == "size"
    assert dead["reason"] == f"message has {len(message)} bytes, allowed is up to {MAX_MESSAGE_BYTES}"
    assert (dead["size"], dead["sha256"]) == (len(message), hashlib.sha256(message).hexdigest())
    assert base64.b64decode(dead["message"]) == message[:DEAD_BYTES]
    (dead,) = found[DEAD[ACTIONS]]
    assert dead["kind"] == "range" and dead["reason"].startswith("ts_ms is -3") and dead["topic"] == ACTIONS
