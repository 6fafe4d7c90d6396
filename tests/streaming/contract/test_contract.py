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
from streaming.declaration import INT64_MIN, Declaration, Feature
from streaming.event_time import EventTime
from streaming.publisher import Publisher
from streaming.topics import DEAD
from streaming.views import Column, Views
from tests.support.events import CASES, DECLARATION, Case

CONTRACT, DECODER = Contract(DECLARATION), Decoder(DECLARATION, EventTime())
each = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def test_the_table_is_large_and_has_every_kind() -> None:
    assert len(CASES) >= 120
    kinds = Counter(case.kind for case in CASES)
    assert set(kinds) == {"", *KINDS} and kinds[""] >= 40


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


class Counters:
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


@each
def test_the_feature_push(case: Case) -> None:
    plan = SimpleNamespace(declaration=DECLARATION, views=Views(by="user"), columns={})
    reader = SimpleNamespace(partitions=lambda topic: [0])
    counters = Counters()
    push = Push(SimpleNamespace(plan=plan), None, reader, counters, EventTime(2**62), 1000, 1000, None)  # type: ignore[arg-type]
    push.take(case.topic, 0, 5, case.message)
    assert (len(counters.events), counters.ignored) == (is_event(case), bool(case.kind))


ITEM = {"item_id": 7, "ts_ms": 5, "attributes": {}}
"""An item of a source with the columns brands (ids), price (number) and year (int)."""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"attributes": {"brands": [1], "price": 2.5, "year": 3, "more": "x"}}, ""),
        ({"item_id": None}, "item_id is None, allowed is integer"),
        ({"item_id": INT64_MIN}, f"item_id is {INT64_MIN}, a reserved id"),
        ({"ts_ms": -1}, "ts_ms is -1, allowed is 0 to 253402300799999"),
        ({"attributes": []}, "attributes is [], allowed is object"),
        ({"attributes": {"brands": [1.5]}}, "brands[0] is 1.5, allowed is integer"),
        ({"attributes": {"price": True}}, "price is True, allowed is number"),
        ({"attributes": {"year": 2**63}}, f"year is {2**63}, allowed is {INT64_MIN} to {2**63 - 1}"),
    ],
)
def test_the_attributes_of_an_item_are_the_columns_of_its_view(change: dict[str, Any], reason: str) -> None:
    declaration = Declaration("t", (Feature("brands", "ids", view="video"),), ("click",), "click", 1)
    contract = Contract(declaration, Views(video=(Column("price", "number"), Column("year", "int"))))
    message = json.dumps({**ITEM, **change}).encode()
    if not reason:
        assert contract.read("items", message) == {**ITEM, **change}
        return
    with pytest.raises(BadMessage) as refused:
        contract.read("items", message)
    assert str(refused.value) == reason


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
    publisher, judged = Publisher("nowhere:1", DECLARATION), 0
    for case in CASES:
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
    assert judged >= 120


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


def test_numbers_of_numpy_are_welcome_and_what_json_cannot_hold_is_an_error(sent: list[tuple[str, bytes]]) -> None:
    import numpy as np

    publisher = Publisher("nowhere:1", DECLARATION)
    event = {"impression_id": "a", "user_id": np.int64(1), "item_id": 2, "ts_ms": 5, "features": {"age": np.float32(1)}}
    event["features"]["tags"] = np.array([4, 5])  # type: ignore[index]
    assert publisher.send("impressions", event) and json.loads(sent[0][1])["user_id"] == 1
    assert json.loads(sent[0][1])["features"] == {"age": 1.0, "tags": [4, 5]}
    with pytest.raises(TypeError, match="a set cannot be written as JSON"):
        publisher.send("impressions", {**event, "features": {"tags": {1}}})
