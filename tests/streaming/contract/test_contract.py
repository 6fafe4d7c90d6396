"""One contract: contract, archive, feature push and publisher find the same in each message of the table.

The join's parser runs the same table (streaming/join/src/test/java/minutehand/join/ContractTest.java).
"""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from features.push import Push
from streaming.archive.rows import Decoder
from streaming.contract.contract import Contract
from streaming.contract.schema import KINDS, SCHEMA, BadMessage
from streaming.event_time import EventTime
from streaming.publisher import Publisher, item
from streaming.topics import DEAD
from streaming.views import Views
from tests.support import shop_views
from tests.support.events import CASES, DECLARATION, UPSERTS, VIEWS, Case

CONTRACT, DECODER = Contract(DECLARATION), Decoder(DECLARATION, EventTime())
each = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def test_the_table_is_large_and_has_every_kind() -> None:
    assert len(CASES) >= 120 and len(UPSERTS) >= 60
    kinds = Counter(case.kind for case in (*CASES, *UPSERTS))
    assert set(kinds) == {"", *KINDS} and kinds[""] >= 50


@each
def test_the_contract(case: Case) -> None:
    try:
        event, kind = CONTRACT.read(case.topic, case.message), ""
    except BadMessage as e:
        event, kind = {}, e.kind
        assert str(e) and len(str(e)) < 400
    assert kind == case.kind
    if not kind and "heartbeat_ms" not in event:
        assert set(SCHEMA[case.topic]["required"]) <= set(event)


@each
def test_the_archive(case: Case) -> None:
    record = SimpleNamespace(value=case.message, timestamp=7, offset=3)
    rows = DECODER.rows(case.topic, 0, [record])
    assert [kind for _, kind, _ in rows.bad] == ([case.kind] if case.kind else [])
    assert rows.table.num_rows == is_event(case)
    assert [beat.heartbeat_ms for beat in rows.beats] == [7], "any record tells the broker's time"


def is_event(case: Case) -> bool:
    return not case.kind and "heartbeat_ms" not in CONTRACT.read(case.topic, case.message)


class Judge:
    """Takes what the feature push counts."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.ignored = 0

    def shown(self, *event: Any) -> None:
        self.events.append(event)

    action = shown

    def clock(self, topic: str, partition: int, ms: int, partitions: int) -> None:
        assert (ms, partitions) == (5, 2)

    def time_of(self, topic: str, partition: int) -> None:
        return None


UNUSED: dict[str, Any] = {"counts": None, "judge": None, "push_ms": 1000, "gauges": None}


@each
def test_the_feature_push(case: Case) -> None:
    plan = SimpleNamespace(declaration=DECLARATION, views=Views())
    reader = SimpleNamespace(partitions=lambda topic: [0])
    judge = Judge()
    push = Push(SimpleNamespace(plan=plan), None, reader, judge, EventTime(2**62), 1000, None)  # type: ignore[arg-type]
    push.take(case.topic, 0, 5, case.message)
    assert (len(judge.events), judge.ignored) == (is_event(case), bool(case.kind))


def test_each_message_of_attributes_in_the_contract_and_in_the_feature_push(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, buried = [], []
    monkeypatch.setattr(
        "features.push.Attributes", lambda store: SimpleNamespace(take=lambda *event: taken.append(event))
    )
    plan = SimpleNamespace(declaration=shop_views.declaration, views=VIEWS)
    reader = SimpleNamespace(partitions=lambda topic: [0], bury=lambda *letter: buried.append(letter))
    push = Push(SimpleNamespace(plan=plan), reader=reader, event_time=EventTime(2**62), **UNUSED)  # type: ignore[arg-type]
    for case in UPSERTS:
        taken.clear(), buried.clear()
        push.take_upsert(case.topic, 1, SimpleNamespace(value=case.message, timestamp=7, offset=3))
        if case.kind:
            ((*where, message, kind, reason),) = buried
            assert (where, message, kind) == ([case.topic, 1, 3], case.message, case.kind), case.name
            assert reason and len(reason) < 400 and not taken
        else:
            assert taken == [(case.topic, json.loads(case.message))] and not buried, case.name


def test_attributes_that_are_ahead_of_their_stamp_are_dead_letters() -> None:
    buried: list[Any] = []
    plan = SimpleNamespace(declaration=shop_views.declaration, views=VIEWS, columns={})
    reader = SimpleNamespace(partitions=lambda topic: [0], bury=lambda *letter: buried.append(letter))
    push = Push(SimpleNamespace(plan=plan), reader=reader, event_time=EventTime(10, "a lease"), **UNUSED)  # type: ignore[arg-type]
    for ts_ms in (17, 18):
        message = b'{"item_id":7,"attributes":{"price":1},"ts_ms":%d}' % ts_ms
        push.take_upsert("items", 0, SimpleNamespace(value=message, timestamp=7, offset=3))
    ((*_, kind, reason),) = buried
    assert (kind, reason) == ("future", "ts_ms is 18, allowed is up to 17")


def test_a_source_without_columns_refuses_every_attribute() -> None:
    contract = Contract(DECLARATION)
    with pytest.raises(BadMessage, match=r"attributes has 'price', allowed are none: the source's view has no column"):
        contract.read("items", b'{"item_id":7,"ts_ms":5,"attributes":{"price":1}}')


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """What a publisher sends, with a producer that only remembers."""
    messages: list[tuple[str, bytes]] = []

    class Producer:
        def __init__(self, **_: Any) -> None: ...

        def send(self, topic: str, value: bytes, **_: Any) -> None:
            messages.append((topic, value))

    monkeypatch.setattr("streaming.publisher.KafkaProducer", Producer)
    return messages


def as_event(case: Case) -> dict[str, Any] | None:
    """The event as an app has it; None where only the bytes are at fault, or where it is a heartbeat."""
    try:
        event = json.loads(case.message.decode())
    except (ValueError, RecursionError):
        return None
    in_bytes_only = case.kind in ("json", "length") and "NaN" not in case.name and "bytes" not in case.name
    in_bytes_only |= b"1e999" in case.message  # Python has no such number
    return None if not isinstance(event, dict) or "heartbeat_ms" in event or in_bytes_only else event


def test_the_publisher(sent: list[tuple[str, bytes]]) -> None:
    events = Publisher("nowhere:1", DECLARATION)
    attributes, judged = Publisher("nowhere:1", shop_views.declaration, views=VIEWS), 0
    for publisher, case in (*((events, case) for case in CASES), *((attributes, case) for case in UPSERTS)):
        event = as_event(case)
        if event is None:
            continue
        judged += 1
        sent.clear()
        assert publisher.send(case.topic, event) == (not case.kind), case.name
        ((topic, message),) = sent
        if case.kind:
            dead = json.loads(message)
            assert (topic, dead["kind"]) == (DEAD[case.topic], case.kind), case.name
            assert dead["reason"] and dead["topic"] == case.topic
        else:
            assert (topic, json.loads(message)) == (case.topic, event)
    assert judged >= 170


def test_a_publisher_tells_what_it_refused_last(sent: list[tuple[str, bytes]]) -> None:
    publisher = Publisher("nowhere:1", DECLARATION)
    event = {"impression_id": "a", "user_id": 1, "item_id": 2, "ts_ms": 5}
    for features, reason in (
        ({"age": float("nan")}, "age is nan, allowed is a number that is finite as a float32"),
        ({"user": 7.9}, "user is 7.9, allowed is integer"),
        ({"extra": float("inf")}, "message is not JSON: Infinity is no number"),
    ):
        assert not publisher.send("impressions", {**event, "features": features})
        assert publisher.refusal == f"impressions: impression 'a': {reason}"
        assert json.loads(sent[-1][1])["reason"] == reason
    assert not publisher.send("items", item(7, 5, {"age": 1}))
    assert publisher.refusal.startswith("items: item 7: attributes has 'age', allowed are none")


def test_numbers_of_numpy_are_welcome_and_what_json_cannot_hold_is_an_error(sent: list[tuple[str, bytes]]) -> None:
    import numpy as np

    publisher = Publisher("nowhere:1", DECLARATION)
    event = {"impression_id": "a", "user_id": np.int64(1), "item_id": 2, "ts_ms": 5, "features": {"age": np.float32(1)}}
    event["features"]["tags"] = np.array([4, 5])  # type: ignore[index]
    assert publisher.send("impressions", event) and json.loads(sent[0][1])["user_id"] == 1
    assert json.loads(sent[0][1])["features"] == {"age": 1.0, "tags": [4, 5]}
    with pytest.raises(TypeError, match="a set cannot be written as JSON"):
        publisher.send("impressions", {**event, "features": {"tags": {1}}})
