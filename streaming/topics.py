"""The Kafka topics: names, partitions, and how long and how much each one keeps."""

from __future__ import annotations

import argparse
import json
import sys

from common import process
from common.errors import InputError
from streaming.contract.schema import MAX_MESSAGE_BYTES

IMPRESSIONS, ACTIONS, EXAMPLES = "impressions", "actions", "examples"
ITEMS, USERS = "items", "users"
KEYS = {IMPRESSIONS: "impression_id", ACTIONS: "impression_id", ITEMS: "item_id", USERS: "user_id"}
"""Topic of apps -> the field that is the key of its records."""
FORGET = "forget_ms"
"""The field of a record of USERS that asks to forget the user up to this time."""
DEAD = {topic: f"{topic}.dead" for topic in (IMPRESSIONS, ACTIONS, EXAMPLES, ITEMS, USERS)}
LATE = {topic: f"{topic}.late" for topic in (IMPRESSIONS, ACTIONS)}
ALL = (IMPRESSIONS, ACTIONS, EXAMPLES, ITEMS, USERS, *DEAD.values(), *LATE.values())

PARTITIONS = 2
RETENTION_MS = 7 * 24 * 3600 * 1000
RETENTION_BYTES = 2**30
"""The size of a partition. Two days of KuaiRand-Pure fill about a tenth of it."""

log = process.logger("topics")


def segment_bytes(retention_bytes: int) -> int:
    """The size of a log segment: retention removes whole segments."""
    return max(2**20, min(retention_bytes // 4, 2**28))


def create(
    bootstrap: str,
    partitions: int = PARTITIONS,
    *,
    retention_ms: int = RETENTION_MS,
    retention_bytes: int = RETENTION_BYTES,
    timeout_s: float = 30,
) -> list[str]:
    """Makes the topics that are not there yet, and returns their names. The broker stamps the records of all.

    A topic with fewer partitions grows. Raises InputError if one has more: Kafka takes none away.
    """
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic
    from kafka.errors import TopicAlreadyExistsError

    stamps = {"message.timestamp.type": "LogAppendTime"}
    config = {
        **stamps,
        "retention.ms": str(retention_ms),
        "retention.bytes": str(retention_bytes),
        "segment.bytes": str(segment_bytes(retention_bytes)),
        "max.message.bytes": str(MAX_MESSAGE_BYTES + 2**16),
    }
    ms = int(timeout_s * 1000)
    admin = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=ms, request_timeout_ms=ms)
    try:
        there = set(admin.list_topics())
        grown = {}
        for topic in admin.describe_topics(sorted(there & set(ALL))) if there & set(ALL) else ():
            name, count = topic["name"], len(topic["partitions"])
            if count > partitions:
                raise InputError(
                    f"partitions is {partitions}, but topic {name} has {count}; allowed is {count} or more"
                )
            if count < partitions:
                grown[name] = partitions
        if grown:
            admin.create_partitions(grown)
        made = []
        for name in ALL:
            if name in there:
                continue
            try:
                admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config)])
                made.append(name)
            except TopicAlreadyExistsError:
                pass  # another process made it meanwhile
        if there & set(ALL):  # of an older version
            resources = [ConfigResource(ConfigResourceType.TOPIC, name, stamps) for name in sorted(there & set(ALL))]
            admin.alter_configs(resources)
        return made
    finally:
        admin.close()


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("streaming.topics", "Make the Kafka topics that are not there yet.")
    add, count = parser.add_argument, process.at_least(1)
    parser.shared("kafka")
    add("--partitions", type=count, default=PARTITIONS, help="of each topic (default: %(default)s)")
    add("--retention-ms", type=int, default=RETENTION_MS, help="how long a topic keeps a record (default: %(default)s)")
    add("--retention-bytes", type=int, default=RETENTION_BYTES, help="the size of a partition (default: %(default)s)")
    args = parser.parse_args(argv)
    return process.run(lambda: _report(args))


def _report(args: argparse.Namespace) -> None:
    made = create(args.kafka, args.partitions, retention_ms=args.retention_ms, retention_bytes=args.retention_bytes)
    log.info("made: %s", json.dumps(made))


if __name__ == "__main__":
    sys.exit(main())
