"""The topics of the house: names, partitions, and how long and how much each keeps."""

from __future__ import annotations

import argparse
import json
import logging
import sys

from streaming.contract.contract import MAX_MESSAGE_BYTES

IMPRESSIONS, ACTIONS, EXAMPLES = "impressions", "actions", "examples"
DEAD = {topic: f"{topic}.dead" for topic in (IMPRESSIONS, ACTIONS, EXAMPLES)}
LATE = {topic: f"{topic}.late" for topic in (IMPRESSIONS, ACTIONS)}
ALL = (IMPRESSIONS, ACTIONS, EXAMPLES, *DEAD.values(), *LATE.values())

PARTITIONS = 2
RETENTION_MS = 24 * 3600 * 1000
RETENTION_BYTES = 2 * 2**30
"""Of a partition. Two days of KuaiRand-Pure fill about a twentieth of it."""

log = logging.getLogger("topics")


def create(
    bootstrap: str,
    partitions: int = PARTITIONS,
    *,
    retention_ms: int = RETENTION_MS,
    retention_bytes: int = RETENTION_BYTES,
    timeout_s: float = 30,
) -> list[str]:
    """Makes the topics that are not there yet, and returns their names. Those that are there are left as they are."""
    from kafka.admin import KafkaAdminClient, NewTopic
    from kafka.errors import TopicAlreadyExistsError

    config = {
        "retention.ms": str(retention_ms),
        "retention.bytes": str(retention_bytes),
        # A segment is the unit that retention removes.
        "segment.bytes": str(max(2**20, min(retention_bytes // 4, 2**28))),
        "max.message.bytes": str(MAX_MESSAGE_BYTES + 2**16),
    }
    ms = int(timeout_s * 1000)
    admin = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=ms, request_timeout_ms=ms)
    try:
        there = set(admin.list_topics())
        made = []
        for name in ALL:
            if name in there:
                continue
            try:
                admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config)])
                made.append(name)
            except TopicAlreadyExistsError:
                pass  # another process made it meanwhile
        return made
    finally:
        admin.close()


def main() -> None:
    parser = argparse.ArgumentParser("streaming.topics", description="Make the Kafka topics that are not there yet.")
    parser.add_argument("--kafka", required=True, metavar="H:P", help="the broker's address")
    parser.add_argument("--partitions", type=int, default=PARTITIONS, help="of each topic (default: %(default)s)")
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    log.info("made: %s", json.dumps(create(args.kafka, args.partitions)))


if __name__ == "__main__":
    main()
