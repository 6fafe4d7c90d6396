"""The publisher: writes impressions and actions to Kafka, each judged by the contract before it is sent.

    with Publisher("127.0.0.1:9092", declaration) as publisher:
        publisher.send("impressions", impression("i1", "r1", 7, 9, ts_ms, 0, features, scores, lineage, 12, ""))
        publisher.send("actions", action("i1", "click", ts_ms + 900))
        publisher.heartbeat(ts_ms + 1000)

A message that breaks the contract (docs/example.md) goes to `<topic>.dead` with the kind of the fault and the reason.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from streaming.contract.contract import MAX_MESSAGE_BYTES, BadMessage, Contract
from streaming.declaration import Declaration
from streaming.topics import ACTIONS, DEAD, IMPRESSIONS

DEAD_BYTES = 64 * 1024
"""So much of a bad message is in its dead-letter record."""


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
    """An impression: features and scores as served, and the state (lineage, seq) that scored it.

    `read_ms`: when its features were read from the feature store, wall clock; 0 if they were not.
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


def dead(topic: str, message: bytes, kind: str, reason: str, partition: int = -1, offset: int = -1) -> bytes:
    """The dead-letter record of a message; partition and offset are -1 where it never reached the broker."""
    record = {
        "kind": kind,
        "reason": reason,
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "size": len(message),
        "sha256": hashlib.sha256(message).hexdigest(),
        "message": base64.b64encode(message[:DEAD_BYTES]).decode(),
    }
    return json.dumps(record).encode()


class Stopped(RuntimeError):
    """The producer was stopped before the broker had everything."""


class Publisher:
    """Writes events to Kafka in the order they are sent: idempotent, acknowledged by all, through a broker's restart.

    `sent`, `refused` and `heartbeats` count records. An event that could not be written at all raises in `flush`.
    """

    def __init__(self, bootstrap: str, declaration: Declaration, client_id: str = "minutehand-publisher") -> None:
        from kafka import KafkaProducer

        self._contract = Contract(declaration)
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap,
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            compression_type="lz4",
            max_request_size=MAX_MESSAGE_BYTES + 2**16,
            # Longer than any restart of the broker: an event that was taken is not given up.
            delivery_timeout_ms=600_000,
            reconnect_backoff_max_ms=500,
        )
        self._pending: list[Any] = []
        self.stop = threading.Event()
        """Set it to give up on a broker that does not come back: `flush` raises Stopped."""
        self.sent = self.refused = self.heartbeats = 0

    def send(self, topic: str, event: Mapping[str, Any]) -> bool:
        """Sends one event, or its dead-letter record: False if it was refused."""
        # ASCII output writes what is not UTF-8 as an escape, so that a refused event can be shown as it was.
        message = json.dumps(event, separators=(",", ":"), default=_plain).encode()
        try:
            self._contract.read(topic, message)
        except BadMessage as e:
            self._pending.append(self._producer.send(DEAD[topic], value=dead(topic, message, e.kind, str(e))))
            self.refused += 1
            return False
        self._pending.append(self._producer.send(topic, key=event["impression_id"].encode(), value=message))
        self.sent += 1
        return True

    def heartbeat(self, ts_ms: int) -> None:
        """Says in every partition of both topics that all events up to ts_ms were sent before."""
        self.flush()
        message = json.dumps({"heartbeat_ms": ts_ms}).encode()
        for topic in (IMPRESSIONS, ACTIONS):
            for partition in sorted(self._producer.partitions_for(topic)):
                self._pending.append(self._producer.send(topic, value=message, partition=partition))
                self.heartbeats += 1

    def flush(self) -> None:
        """Returns when the broker has all that was sent; raises what a send failed with, or Stopped."""
        from kafka.errors import KafkaTimeoutError

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
        from kafka.errors import KafkaTimeoutError

        try:
            self._producer.close(timeout=2)
        except KafkaTimeoutError:
            # Its close stops half-way while the broker is away, and says so again when the interpreter ends: the
            # sender must fail what is left first.
            self._producer._sender.force_close()  # noqa: SLF001
            self._producer.close(timeout=2)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self.stop.is_set():
            self.flush()
        self.close()


def _plain(value: Any) -> Any:
    """A NumPy number as Python has it; TypeError for what JSON cannot hold."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"an event holds {value!r}: a {type(value).__name__} cannot be written as JSON")
