"""Reads what was written to topics since a moment, for those who judge or show a platform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Self

from kafka import KafkaConsumer, TopicPartition

from streaming.topics import DEAD, LATE

POLL_MS, READ_AT_ONCE = 500, 5000


class Tail:
    """The committed records of `topics` from `since_ms` (Kafka's timestamps) on. Raises KafkaError.

    Of each partition it reads the newest `most` records; `skipped` counts the others. A topic that is not there counts
    as empty.
    """

    def __init__(self, kafka: str, topics: Sequence[str], since_ms: int = 0, most: int = 2**62) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=kafka,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            bootstrap_timeout_ms=5000,
        )
        there = self._consumer.topics()
        self._places = [
            TopicPartition(topic, partition)
            for topic in topics
            if topic in there
            for partition in self._consumer.partitions_for_topic(topic)
        ]
        self._consumer.assign(self._places)
        ends = self._consumer.end_offsets(self._places)
        self.skipped = 0
        for place, first in self._consumer.offsets_for_times(dict.fromkeys(self._places, since_ms)).items():
            offset = first.offset if first else ends[place]
            begin = max(offset, ends[place] - most)
            self.skipped += begin - offset
            self._consumer.seek(place, begin)

    def read(self) -> Iterator[tuple[str, Any]]:
        """The records that are committed by now and not read yet, each with its topic."""
        ends = self._consumer.end_offsets(self._places)
        while any(self._consumer.position(place) < end for place, end in ends.items()):
            for place, records in self._consumer.poll(POLL_MS, max_records=READ_AT_ONCE).items():
                yield from ((place.topic, record) for record in records if record.offset < ends[place])

    def close(self) -> None:
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Refused(Tail):
    """Counts the records that the platform did not learn from: dead letters, and those that came too late."""

    def __init__(self, kafka: str, since_ms: int = 0) -> None:
        super().__init__(kafka, (*DEAD.values(), *LATE.values()), since_ms)
        self._counts: Counter[str] = Counter()

    def count(self) -> dict[str, int]:
        """Topic -> its records, for topics that have some: `impressions.dead`, `actions.late` and so on."""
        self._counts.update(topic for topic, _ in self.read())
        return dict(sorted(self._counts.items()))
