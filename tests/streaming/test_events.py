"""The producer's edge: what fits, what does not and why; and on a real broker where it goes."""

import base64
import hashlib
import json
import time

import pytest

from streaming.declaration import INT64_MAX, INT64_MIN
from streaming.events import DEAD_BYTES, Publisher, Stopped, action, impression, problem, schemas
from streaming.sources.simulator import declaration
from streaming.topics import ACTIONS, DEAD, IMPRESSIONS, MAX_MESSAGE_BYTES, create
from tests.support.broker import Broker

FEATURES = {"viewer": 1, "topics": [2], "age": 0.5}
SHOWN = impression("i", "r", 1, 2, 3, 0, FEATURES, {"watch": 0.5}, "l", 4)
DONE = action("i", "watch", 5)
SCHEMAS = schemas(declaration)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"features": {"viewer": INT64_MAX, "clip": -1, "maker": 0, "topics": [], "age": 3}},
        {"extra": {"any": [None]}, "scores": {}, "lineage": "", "seq": -1},
        {"impression_id": "é" * 64},
    ],
)
def test_fits(more):
    assert problem(SCHEMAS[IMPRESSIONS], SHOWN | more) is None and problem(SCHEMAS[ACTIONS], DONE) is None


@pytest.mark.parametrize(
    ("topic", "more", "reason"),
    [
        (IMPRESSIONS, {"impression_id": ""}, "impression_id has 0 bytes, allowed is 1 to 128"),
        (IMPRESSIONS, {"impression_id": "é" * 64 + "x"}, "impression_id has 129 bytes"),
        (IMPRESSIONS, {"impression_id": "\ud800"}, "not UTF-8"),
        (IMPRESSIONS, {"user_id": "7"}, "user_id is '7', allowed is integer"),
        (IMPRESSIONS, {"user_id": True}, "user_id is True, allowed is integer"),
        (IMPRESSIONS, {"user_id": 2**63}, "user_id is 9223372036854775808, allowed is -9223372036854775808 to"),
        (IMPRESSIONS, {"item_id": INT64_MIN}, "a reserved id"),
        (IMPRESSIONS, {"ts_ms": -1}, "ts_ms is -1, allowed is 0 to"),
        (IMPRESSIONS, {"ts_ms": 1.0}, "ts_ms is 1.0, allowed is integer"),
        (IMPRESSIONS, {"features": None}, "features is None, allowed is object"),
        (IMPRESSIONS, {"features": {"viewer": INT64_MIN + 1}}, "viewer is -9223372036854775807, a reserved id"),
        (IMPRESSIONS, {"features": {"topics": [1, "2"]}}, "topics[1] is '2', allowed is integer"),
        (IMPRESSIONS, {"features": {"age": float("nan")}}, "age is nan, allowed is a finite number"),
        (IMPRESSIONS, {"scores": {"watch": 1.5}}, "watch is 1.5, allowed is 0 to 1"),
        (ACTIONS, {"action": "hug"}, "action is 'hug', allowed are watch, save"),
        (ACTIONS, {"value": None}, "value is None, allowed is a finite number"),
    ],
)
def test_a_bad_event_is_named(topic, more, reason):
    assert reason in problem(SCHEMAS[topic], (SHOWN if topic == IMPRESSIONS else DONE) | more)


def test_a_missing_field_is_named():
    for topic, event in ((IMPRESSIONS, SHOWN), (ACTIONS, DONE)):
        for key in SCHEMAS[topic]["required"]:
            assert f"{key} is missing" in problem(SCHEMAS[topic], {k: v for k, v in event.items() if k != key})


def test_a_broker_that_is_gone_can_be_given_up_on():
    with Broker() as broker:
        create(broker.bootstrap)
        publisher = Publisher(broker.bootstrap, declaration)
        assert publisher.send(ACTIONS, DONE)
        publisher.flush()
    publisher.send(ACTIONS, DONE)
    publisher.stop.set()
    with pytest.raises(Stopped, match="1 events"):
        publisher.flush()
    publisher.close()


def test_on_a_broker_bad_and_oversized_events_go_to_the_dead_topic():
    from kafka import KafkaConsumer, TopicPartition

    huge = SHOWN | {"features": FEATURES | {"note": "x" * 10_000_000}}
    partitions = [TopicPartition(t, p) for t in (IMPRESSIONS, ACTIONS, *DEAD.values()) for p in (0, 1)]
    found: dict[str, list[dict]] = {p.topic: [] for p in partitions}
    with Broker() as broker:
        create(broker.bootstrap)
        with Publisher(broker.bootstrap, declaration) as publisher:
            assert publisher.send(IMPRESSIONS, SHOWN) and publisher.send(ACTIONS, DONE)
            assert not publisher.send(IMPRESSIONS, huge)
            assert not publisher.send(ACTIONS, DONE | {"ts_ms": -3})
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
    beats = [{"heartbeat_ms": 9}] * 2
    for topic, event in ((IMPRESSIONS, SHOWN), (ACTIONS, DONE)):
        assert sorted(found[topic], key=len, reverse=True) == [event, *beats]
    (dead,) = found[DEAD[IMPRESSIONS]]
    message = json.dumps(huge, separators=(",", ":")).encode()
    assert dead["reason"] == f"message has {len(message)} bytes, allowed is up to {MAX_MESSAGE_BYTES}"
    assert (dead["size"], dead["sha256"]) == (len(message), hashlib.sha256(message).hexdigest())
    assert base64.b64decode(dead["message"]) == message[:DEAD_BYTES]
    (dead,) = found[DEAD[ACTIONS]]
    assert dead["reason"].startswith("ts_ms is -3") and dead["topic"] == ACTIONS
