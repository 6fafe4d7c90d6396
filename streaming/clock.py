"""The live clock: a record in every partition of the event topics each 200 ms. Event time goes on without events.

    python -m streaming.clock --kafka 127.0.0.1:9092

Only the stamp that the broker gives such a record counts. So it does not matter whose clock is right, how many of these
processes run, or who else writes such records. While none runs, an idle partition holds event time where it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from kafka import KafkaProducer
from prometheus_client import CollectorRegistry, Counter, Gauge

from common import process
from streaming.topics import ACTIONS, IMPRESSIONS

EVERY_MS = 200
ACKNOWLEDGED_WITHIN_S = 10.0


class Gauges:
    """The metrics of the clock."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.errors = Counter("minutehand_clock_errors", "Records that the broker did not take", registry=self.registry)
        self.stamp = Gauge("minutehand_clock_stamp_ms", "The broker's newest stamp", registry=self.registry)


def run(args: argparse.Namespace) -> None:
    gauges = Gauges()
    with process.Service(args.port, gauges.registry, gauges.errors) as service:
        service.follow(
            args.kafka, lambda: _producer(args.kafka), lambda producer: _tick(producer, args, service, gauges)
        )


def _producer(kafka: str) -> KafkaProducer:
    return KafkaProducer(
        bootstrap_servers=kafka, bootstrap_timeout_ms=5000, acks=1, max_block_ms=2000, metadata_max_age_ms=5000
    )


def _tick(producer: KafkaProducer, args: argparse.Namespace, service: process.Service, gauges: Gauges) -> None:
    """Writes a record to each partition of both topics, again and again. New partitions are noticed."""
    while not service.stopping.wait(args.every_ms / 1000):
        message = json.dumps({"heartbeat_ms": time.time_ns() // 1_000_000}).encode()
        written = [
            producer.send(topic, message, partition=partition)
            for topic in (IMPRESSIONS, ACTIONS)
            for partition in sorted(producer.partitions_for(topic))
        ]
        gauges.stamp.set(max(future.get(timeout=ACKNOWLEDGED_WITHIN_S).timestamp for future in written))


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("streaming.clock", __doc__ or "")
    parser.shared("kafka")
    parser.add_argument(
        "--every-ms", type=process.at_least(10), default=EVERY_MS, metavar="N",
        help="the time between two records of a partition (default: %(default)s)",
    )  # fmt: skip
    parser.shared("port")
    args = parser.parse_args(argv)
    return process.run(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
