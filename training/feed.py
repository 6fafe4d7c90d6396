"""The examples topic as the trainer reads it: from the committed positions on, decoded by column.

Positions are the manifest's, never a consumer group's: what is learned and where it was read are committed together.
Lines that are no example go to `examples.dead` with the reason, and the others of their batch are learned.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, KafkaTimeoutError

from streaming.declaration import Declaration
from streaming.events import dead
from streaming.example import Batch, decode
from streaming.topics import DEAD, EXAMPLES

log = logging.getLogger("feed")


class ForeignTopic(RuntimeError):
    """The log's positions belong to another cluster or topic than the one given."""


class Feed:
    """All partitions of `examples`. Raises KafkaError while no broker answers, ForeignTopic for another topic."""

    def __init__(self, bootstrap: str, declaration: Declaration, positions: Mapping[str, Any]) -> None:
        self._bootstrap, self._declaration = bootstrap, declaration
        self.dead = 0
        self._beats: dict[tuple[int, int], int] = {}
        self._subtasks = 0
        self._producer: KafkaProducer | None = None
        self._identity, partitions = self._look()
        for name in ("cluster", "topic", "topic_id"):
            if positions and positions[name] != self._identity[name]:
                raise ForeignTopic(
                    f"kafka {bootstrap}: {name} is {self._identity[name]!r}, but the log's positions are of"
                    f" {positions[name]!r}: begin a new lineage (python -m training.batch) or give the right broker"
                )
        offsets = {int(p): int(o) for p, o in positions.get("offsets", {}).items()}
        self._assigned = [TopicPartition(EXAMPLES, p) for p in sorted(partitions)]
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a position that is gone is said, not jumped over
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
            bootstrap_timeout_ms=5000,
        )
        self._consumer.assign(self._assigned)
        starts = self._consumer.beginning_offsets(self._assigned)
        self._next = {tp: offsets.get(tp.partition, starts[tp]) for tp in self._assigned}
        for tp, offset in self._next.items():
            self._consumer.seek(tp, offset)

    def _look(self) -> tuple[dict[str, str], set[int]]:
        """The cluster's and the topic's ids, and the topic's partitions."""
        admin = KafkaAdminClient(bootstrap_servers=self._bootstrap, bootstrap_timeout_ms=5000)
        try:
            if EXAMPLES not in admin.list_topics():
                raise KafkaTimeoutError(f"no topic {EXAMPLES} (python -m streaming.topics makes it)")
            cluster = admin.describe_cluster()["cluster_id"]
            topic = admin.describe_topics([EXAMPLES])[0]
        finally:
            admin.close()
        identity = {"cluster": str(cluster), "topic": EXAMPLES, "topic_id": str(topic["topic_id"])}
        return identity, {int(p["partition_index"]) for p in topic["partitions"]}

    def poll(self, timeout_ms: int, most: int) -> list[Batch]:
        """What came, one batch a partition; waits at most `timeout_ms` for the first record."""
        found = []
        for tp, records in self._consumer.poll(timeout_ms=timeout_ms, max_records=most).items():
            lines = [r.value or b"" for r in records]
            batch = decode(lines, self._declaration)
            for place, reason in batch.bad:
                self._bury(tp.partition, records[place].offset, lines[place], reason)
            for beat in batch.progress:
                key = tp.partition, beat.subtask
                self._beats[key] = max(beat.heartbeat_ms, self._beats.get(key, -1))
                self._subtasks = beat.subtasks
            self._next[tp] = records[-1].offset + 1
            found.append(batch)
        return found

    def read_until_ms(self) -> int:
        """Event time up to which all was read: the least of every partition's and subtask's newest progress; -1 if
        one of them has not spoken yet."""
        keys = [(tp.partition, s) for tp in self._assigned for s in range(self._subtasks)]
        return min((self._beats.get(key, -1) for key in keys), default=-1)

    def positions(self) -> dict[str, Any]:
        """Where the next poll begins, with the ids that make it mean something. Waits until dead letters are kept."""
        if self._producer is not None:
            self._producer.flush(timeout=30)
        offsets = {str(tp.partition): self._position(tp) for tp in self._assigned}
        return {**self._identity, "offsets": offsets}

    def _position(self, tp: TopicPartition) -> int:
        # The consumer's own position is past commit markers, which take offsets too; it may be unknown for a moment.
        try:
            position = self._consumer.position(tp, timeout_ms=1000)
        except KafkaError:
            position = None
        following: int = self._next[tp]
        return max(following, int(position or 0))

    def lag(self) -> int:
        """Records between here and the newest known of each partition."""
        ends = {tp: self._consumer.highwater(tp) for tp in self._assigned}
        return sum(max(0, end - self._position(tp)) for tp, end in ends.items() if end is not None)

    def _bury(self, partition: int, offset: int, line: bytes, reason: str) -> None:
        self.dead += 1
        log.warning("examples %d:%d is no example: %s; kept in %s", partition, offset, reason, DEAD[EXAMPLES])
        if self._producer is None:
            self._producer = KafkaProducer(bootstrap_servers=self._bootstrap, bootstrap_timeout_ms=5000)
        self._producer.send(DEAD[EXAMPLES], dead(EXAMPLES, line, reason, partition, offset))

    def close(self) -> None:
        self._consumer.close()
        if self._producer is not None:
            self._producer.close(timeout=5)
