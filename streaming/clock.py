"""The live clock: a record in every partition of the event topics each 200 ms. Event time goes on without events.

    python -m streaming.clock --kafka 127.0.0.1:9092

Only the stamp that the broker gives such a record counts. So it does not matter whose clock is right, how many of these
processes run, or who else writes such records. While none runs, an idle partition holds event time where it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time

from common import process
from streaming.topics import ACTIONS, IMPRESSIONS

EVERY_MS = 200

log = process.logger("clock")


def tick(kafka: str, every_s: float, stopping: threading.Event) -> None:
    """Writes until `stopping` is set. New partitions are noticed; a broker that is away is waited for."""
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    producer = None
    while not stopping.is_set():
        try:
            producer = producer or KafkaProducer(
                bootstrap_servers=kafka, acks=1, retries=0, max_block_ms=2000, metadata_max_age_ms=5000
            )
            message = json.dumps({"heartbeat_ms": time.time_ns() // 1_000_000}).encode()
            for topic in (IMPRESSIONS, ACTIONS):
                for partition in sorted(producer.partitions_for(topic) or ()):
                    producer.send(topic, message, partition=partition)
        except KafkaError as e:
            log.warning("kafka %s: %s; tried again", kafka, e)
            stopping.wait(1)
        stopping.wait(every_s)
    if producer is not None:
        producer.close(timeout=1)


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("streaming.clock", __doc__ or "")
    parser.shared("kafka")
    parser.add_argument(
        "--every-ms", type=process.at_least(10), default=EVERY_MS, metavar="N",
        help="the time between two records of a partition (default: %(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    tick(args.kafka, args.every_ms / 1000, process.stopping())


if __name__ == "__main__":
    sys.exit(main())
