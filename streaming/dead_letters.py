"""Dead letters: messages that break the contract, each kept in `<topic>.dead` with the reason (docs/example.md)."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

DEAD_BYTES, REASON_CHARACTERS = 64 * 1024, 1000
"""A dead-letter record holds so much of the message and of the reason: the broker must take each record."""
SEND_MS = 2000
"""The longest time that one attempt to send a letter waits for a broker."""
SETTLE_S = 5.0
"""The longest time that a commit waits for its letters."""


def dead(topic: str, message: bytes, kind: str, reason: str, partition: int = -1, offset: int = -1) -> bytes:
    """The dead-letter record of a message; partition and offset are -1 if the message never reached the broker."""
    record = {
        "kind": kind,
        "reason": reason[:REASON_CHARACTERS],
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "size": len(message),
        "sha256": hashlib.sha256(message).hexdigest(),
        "message": base64.b64encode(message[:DEAD_BYTES]).decode(),
    }
    return json.dumps(record).encode()


def close_producer(producer: KafkaProducer, timeout_s: float) -> None:
    """Closes a producer in about `timeout_s`, whether a broker answers or not. What it could not send is lost."""
    try:
        producer.close(timeout=timeout_s)
    except KafkaTimeoutError:
        # The library stops half-way while the broker is away, and raises again when the interpreter ends. Its thread
        # must first give up what is left.
        producer._sender.force_close()  # noqa: SLF001
        producer.close(timeout=timeout_s)


@dataclass
class _Letter:
    """A record for a topic, and the result of the last attempt to send it."""

    topic: str
    record: bytes
    future: Any = None
    error: Exception | None = None


class DeadLetters:
    """Sends records to dead-letter topics. It remembers each one until a broker has acknowledged it."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._producer: KafkaProducer | None = None
        self._letters: deque[_Letter] = deque()

    def send(self, topic: str, record: bytes) -> None:
        """Sends a record at once if a broker takes it. Never raises: `settle` sends again what got lost."""
        self._forget_acknowledged()
        blocked = bool(self._letters) and self._letters[-1].future is None  # no broker took the letter before
        self._letters.append(_Letter(topic, record))
        if not blocked:
            self._attempt(self._letters[-1])

    def settle(self) -> None:
        """Waits until a broker has acknowledged every record. Raises KafkaError if one is missing after SETTLE_S."""
        end = time.monotonic() + SETTLE_S
        while self._forget_acknowledged():
            if time.monotonic() > end:
                why = self._letters[0].error or "no answer"
                raise KafkaTimeoutError(f"{len(self._letters)} dead letters are not acknowledged: {why}")
            lost = [letter for letter in self._letters if letter.future is None or letter.future.failed()]
            if any(letter.future is not None for letter in lost):
                self.close()  # a producer takes nothing any more after the broker has refused a record
            for letter in lost:
                if not self._attempt(letter):
                    break
            time.sleep(0.5 if lost else 0.02)

    def close(self) -> None:
        if self._producer is not None:
            close_producer(self._producer, 1)
            self._producer = None

    def _attempt(self, letter: _Letter) -> bool:
        """Hands a letter to the producer. Returns whether the producer took it."""
        if letter.future is not None:
            letter.error = letter.future.exception
        try:
            if self._producer is None:
                self._producer = KafkaProducer(
                    bootstrap_servers=self._bootstrap,
                    bootstrap_timeout_ms=SEND_MS,
                    max_block_ms=SEND_MS,
                    reconnect_backoff_max_ms=500,
                )
            letter.future = self._producer.send(letter.topic, letter.record)
        except Exception as e:  # the library raises errors of many kinds; `settle` reports this one
            letter.future, letter.error = None, e
        return letter.future is not None

    def _forget_acknowledged(self) -> bool:
        """Drops the oldest letters up to the first that is not acknowledged. Returns whether there is one."""
        while self._letters and self._letters[0].future is not None and self._letters[0].future.succeeded():
            self._letters.popleft()
        return bool(self._letters)
