"""The publisher: writes impressions, actions, users and items to Kafka, after it has judged each one by the contract.

    with Publisher("127.0.0.1:9092", declaration) as publisher:
        publisher.send("impressions", impression("i1", "r1", 7, 9, ts_ms, 0, features, scores, lineage, 12, ""))
        publisher.send("actions", action("i1", "click", ts_ms + 900))
        publisher.send("items", item(9, ts_ms, {"category": 4}))

A message that breaks the contract (docs/example.md) goes to `<topic>.dead` with the kind of the fault and the reason.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from streaming.contract.contract import Contract
from streaming.contract.schema import MAX_MESSAGE_BYTES, BadMessage, plain, shown
from streaming.dead_letters import close_producer, dead
from streaming.declaration import Declaration
from streaming.topics import ACTIONS, DEAD, FORGET, IMPRESSIONS, KEYS
from streaming.views import Views


def impression(
    impression_id: str,
    request_id: str,
    user_id: int,
    item_id: int,
    ts_ms: int,
    position: int,
    features: Mapping[str, Any],
    scores: Mapping[str, float],
    lineage: str = "",
    seq: int = -1,
    arm: str = "",
    read_ms: int = 0,
) -> dict[str, Any]:
    """An impression: the features and scores as served, and the state (lineage, seq) of the model that scored it.

    `read_ms` is the wall time at which its features were read from the feature store, 0 if they were not.
    """
    return {
        "impression_id": impression_id,
        "request_id": request_id,
        "user_id": user_id,
        "item_id": item_id,
        "ts_ms": ts_ms,
        "position": position,
        "features": dict(features),
        "scores": dict(scores),
        "lineage": lineage,
        "seq": seq,
        "arm": arm,
        "read_ms": read_ms,
    }


def action(impression_id: str, action: str, ts_ms: int, value: float = 1.0) -> dict[str, Any]:
    """What a user did with an impression."""
    return {"impression_id": impression_id, "action": action, "ts_ms": ts_ms, "value": value}


def item(item_id: int, ts_ms: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a new or changed item, valid from `ts_ms` on: column of the source's view `video` -> value.

    An attribute that is left out keeps its value.
    """
    return {"item_id": item_id, "ts_ms": ts_ms, "attributes": dict(attributes)}


def user(user_id: int, ts_ms: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a user: columns of the view `profile`."""
    return {"user_id": user_id, "ts_ms": ts_ms, "attributes": dict(attributes)}


def forget(user_id: int, forget_ms: int) -> dict[str, Any]:
    """Asks to forget what a user did, and each attribute of it, up to `forget_ms` (docs/profiles.md)."""
    return {"user_id": user_id, FORGET: forget_ms}


class Stopped(RuntimeError):
    """The producer was stopped before the broker had everything."""


class Publisher:
    """Writes events to Kafka in the order in which they are sent, each once, even if the broker restarts meanwhile.

    `views` are the source's, for attributes that are no declared features. `sent`, `refused` and `heartbeats` count
    records. `flush` raises if an event could not be written. `within_s` is how long an event waits for the broker; by
    default that is longer than any restart of it.
    """

    def __init__(
        self, bootstrap: str, declaration: Declaration, client_id: str = "minutehand-publisher", lease: str = "",
        views: Views | None = None, within_s: float = 600.0,
    ) -> None:  # fmt: skip
        self._contract, self._lease = Contract(declaration, views), lease
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap,
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            compression_type="lz4",
            max_request_size=MAX_MESSAGE_BYTES + 2**16,
            delivery_timeout_ms=round(within_s * 1000),
            request_timeout_ms=min(30_000, round(within_s * 900)),  # less than the delivery's
            max_block_ms=min(60_000, round(within_s * 1000)),
            reconnect_backoff_max_ms=500,
        )
        self._pending: list[Any] = []
        self.stop = threading.Event()
        """Set it to give up on a broker that does not come back: `flush` raises Stopped."""
        self.sent = self.refused = self.heartbeats = 0
        self.refusal = ""
        """The last refused event: its impression, item or user, and what is allowed."""

    def send(self, topic: str, event: Mapping[str, Any]) -> bool:
        """Sends an event and returns True; if the contract refuses it, sends its dead letter and returns False."""
        # json writes what is not UTF-8 as an ASCII escape, so the dead letter can hold every event.
        message = json.dumps(event, separators=(",", ":"), default=_plain).encode()
        try:
            self._contract.read(topic, message)
        except BadMessage as e:
            reason = self._reason(topic, message, e)
            self._pending.append(self._producer.send(DEAD[topic], value=dead(topic, message, e.kind, reason)))
            self.refused += 1
            self.refusal = f"{topic}: {KEYS[topic].removesuffix('_id')} {shown(event.get(KEYS[topic]))}: {reason}"
            return False
        self._pending.append(self._producer.send(topic, key=str(event[KEYS[topic]]).encode(), value=message))
        self.sent += 1
        return True

    def _reason(self, topic: str, message: bytes, fault: BadMessage) -> str:
        """The text of a fault. NaN is no JSON, which names no field; the field's own rule does."""
        if fault.kind == "json":
            with contextlib.suppress(RecursionError):
                try:
                    self._contract.check(topic, json.loads(message))
                except BadMessage as of_field:
                    return str(of_field)
        return str(fault)

    def heartbeat(self, ts_ms: int) -> None:
        """Tells every partition of both topics that all events up to `ts_ms` were sent before.

        Raises ValueError without a lease, and for a time that the contract refuses.
        """
        self.flush()
        if not self._lease:
            raise ValueError("a publisher without a lease sends no heartbeats: only a replay owns the clock")
        message = json.dumps({"heartbeat_ms": ts_ms, "lease": self._lease}, default=_plain).encode()
        try:
            self._contract.read(IMPRESSIONS, message)
        except BadMessage as e:
            raise ValueError(f"a heartbeat's {e}") from None
        for topic in (IMPRESSIONS, ACTIONS):
            for partition in sorted(self._producer.partitions_for(topic)):
                self._pending.append(self._producer.send(topic, value=message, partition=partition))
                self.heartbeats += 1

    def flush(self) -> None:
        """Returns once the broker has everything that was sent. Raises the error of a failed event, or Stopped."""
        while True:
            stopped = self.stop.is_set()
            try:
                self._producer.flush(timeout=2)
                break
            except KafkaTimeoutError as e:
                if stopped:
                    raise Stopped(f"stopped while the broker was away: {len(self._pending)} events may be lost") from e
        pending, self._pending = self._pending, []
        for future in pending:
            future.get(timeout=0)

    def close(self) -> None:
        close_producer(self._producer, 2)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self.stop.is_set():
            self.flush()
        self.close()


def _plain(value: Any) -> Any:
    """Converts a number or an array of NumPy for JSON. Raises TypeError for a value that JSON cannot hold."""
    if (converted := plain(value)) is not value:
        return converted
    raise TypeError(f"an event holds {value!r}: a {type(value).__name__} cannot be written as JSON")
