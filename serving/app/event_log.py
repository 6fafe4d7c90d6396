"""Writes events to Kafka for many requests at once. Each request waits until the broker has its events.

A thread takes what is waiting, sends it, and flushes once. If the broker is away, those requests fail together, and
the next ones get a new producer: what was answered with an error is not sent later.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

from kafka.errors import KafkaError

from common import process
from serving.app.problem import Problem
from streaming.publisher import Publisher, Stopped

WITHIN_S = 5.0
"""The longest time that Kafka may take to acknowledge an event."""
_MOST = 200
"""Requests that one flush covers."""

log = process.logger("app")


class _Job(NamedTuple):
    events: Sequence[tuple[str, dict[str, Any]]]
    done: Future[None]


class EventLog:
    """`connect` makes a publisher; it raises KafkaError when there is no broker. `close` ends the thread."""

    def __init__(self, connect: Callable[[], Publisher]) -> None:
        self._connect = connect
        self._publisher: Publisher | None = connect()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    def write(self, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Returns when the broker has all (topic, event) pairs. Raises Problem 503 if it does not take them in time.

        The broker may then have some of them. They have the same ids when they are sent again, and count once.
        """
        if not events:
            return
        job = _Job(events, Future())
        self._jobs.put(job)
        try:
            job.done.result(2 * WITHIN_S)
        except (TimeoutError, CancelledError):
            job.done.cancel()
            raise _away() from None

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        if self._publisher is not None:
            self._publisher.close()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            while len(jobs) < _MOST and not self._jobs.empty():
                if (another := self._jobs.get()) is None:
                    self._jobs.put(None)
                    break
                jobs.append(another)
            self._write([j for j in jobs if j.done.set_running_or_notify_cancel()])

    def _write(self, jobs: Sequence[_Job]) -> None:
        try:
            if self._publisher is None:
                self._publisher = self._connect()
            refused = [self._send(self._publisher, job) for job in jobs]
            self._publisher.flush()
        except (KafkaError, Stopped, OSError) as e:
            log.warning("kafka did not take the events of %d requests: %s", len(jobs), e)
            for job in jobs:
                job.done.set_exception(_away())
            if self._publisher is not None:
                self._publisher.close()
                self._publisher = None
            return
        except Exception as e:  # no request may wait for a thread that has died
            log.exception("the events of %d requests", len(jobs))
            for job in jobs:
                job.done.set_exception(e)
            return
        for job, reason in zip(jobs, refused, strict=True):
            if reason:
                job.done.set_exception(Problem(503, f"an event breaks the contract: {reason}"))
            else:
                job.done.set_result(None)

    @staticmethod
    def _send(publisher: Publisher, job: _Job) -> str:
        """Sends the events of a request. Returns why one was refused, or ""."""
        refused = [publisher.refusal for topic, event in job.events if not publisher.send(topic, event)]
        return refused[0] if refused else ""


def _away() -> Problem:
    return Problem(503, f"Kafka did not acknowledge the events within {WITHIN_S:g} s; send them again later")
