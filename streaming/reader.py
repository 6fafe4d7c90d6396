"""Topics read from committed positions on, read_committed: what every consumer of ours that keeps its own offsets does.

    reader = Reader("127.0.0.1:9092", ["examples"], {"examples": manifest.positions})
    for (topic, partition), records in reader.poll(50, 4096).items(): ...
    reader.positions()["examples"]      # belongs into the commit of what was read

Positions are never a consumer group's: what is kept and where it was read are committed together.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, KafkaTimeoutError

from streaming.publisher import dead
from streaming.topics import DEAD

log = logging.getLogger("reader")

Positions = dict[str, Any]
"""{"cluster": id, "topic": name, "topic_id": id, "offsets": {partition: next offset}}"""


class ForeignTopic(RuntimeError):
    """Committed positions belong to another cluster or topic than the one given."""


class Beats:
    """The newest heartbeat of every partition, or of every partition and subtask of the join. It never falls."""

    def __init__(self, kept: Mapping[str, int] | None = None) -> None:
        self._newest: dict[tuple[int, int], int] = {}
        self._subtasks = 1 if kept else 0
        for key, ms in (kept or {}).items():
            partition, subtask, subtasks = (int(x) for x in key.split("/"))
            self.see(partition, ms, subtask, subtasks)

    def see(self, partition: int, ms: int, subtask: int = 0, subtasks: int = 1) -> None:
        key = partition, subtask
        self._newest[key] = max(ms, self._newest.get(key, -1))
        self._subtasks = subtasks

    def least(self, partitions: Sequence[int]) -> int:
        """Of all these partitions and of every subtask; -1 if one of them has not spoken yet."""
        keys = [(p, s) for p in partitions for s in range(self._subtasks)]
        return min((self._newest.get(key, -1) for key in keys), default=-1)

    def kept(self) -> dict[str, int]:
        """For a commit: what the constructor takes."""
        return {f"{p}/{s}/{self._subtasks}": ms for (p, s), ms in sorted(self._newest.items()) if s < self._subtasks}


class Reader:
    """All partitions of `topics`. Raises KafkaError while no broker answers, ForeignTopic for another topic.

    `whose` positions they are and what to do about foreign ones (`advice`) is for the error's text.
    """

    def __init__(
        self, bootstrap: str, topics: Sequence[str], positions: Mapping[str, Positions],
        whose: str = "the log's", advice: str = "begin a new lineage (python -m training.learn.batch_pass)",
    ) -> None:  # fmt: skip
        self._bootstrap = bootstrap
        self.dead = 0
        self._producer: KafkaProducer | None = None
        self._identity, self.assigned = self._look(topics)
        offsets: dict[TopicPartition, int] = {}
        for topic in topics:
            kept, found = positions.get(topic) or {}, self._identity[topic]
            for name in ("cluster", "topic", "topic_id"):
                if kept and kept[name] != found[name]:
                    raise ForeignTopic(
                        f"kafka {bootstrap}: {name} is {found[name]!r}, but {whose} positions are of"
                        f" {kept[name]!r}: {advice} or give the right broker"
                    )
            offsets |= {TopicPartition(topic, int(p)): int(o) for p, o in kept.get("offsets", {}).items()}
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a position that is gone is said, not jumped over
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
            bootstrap_timeout_ms=5000,
        )
        self._consumer.assign(self.assigned)
        starts = self._consumer.beginning_offsets(self.assigned)
        self._next = {tp: offsets.get(tp, starts[tp]) for tp in self.assigned}
        for tp, offset in self._next.items():
            self._consumer.seek(tp, offset)

    def _look(self, topics: Sequence[str]) -> tuple[dict[str, dict[str, str]], list[TopicPartition]]:
        """The cluster's and the topics' ids, and the topics' partitions."""
        admin = KafkaAdminClient(bootstrap_servers=self._bootstrap, bootstrap_timeout_ms=5000)
        try:
            missing = sorted(set(topics) - set(admin.list_topics()))
            if missing:
                raise KafkaTimeoutError(f"no topic {missing[0]} (python -m streaming.topics makes it)")
            cluster = str(admin.describe_cluster()["cluster_id"])
            described = {t["name"]: t for t in admin.describe_topics(list(topics))}
        finally:
            admin.close()
        identity = {t: {"cluster": cluster, "topic": t, "topic_id": str(d["topic_id"])} for t, d in described.items()}
        places = [TopicPartition(t, int(p["partition_index"])) for t, d in described.items() for p in d["partitions"]]
        return identity, sorted(places)

    def partitions(self, topic: str) -> list[int]:
        return [tp.partition for tp in self.assigned if tp.topic == topic]

    def poll(self, timeout_ms: int, most: int) -> dict[tuple[str, int], list[Any]]:
        """(topic, partition) -> records in their order; waits at most `timeout_ms` for the first one."""
        found = {}
        for tp, records in self._consumer.poll(timeout_ms=timeout_ms, max_records=most).items():
            self._next[tp] = records[-1].offset + 1
            found[tp.topic, tp.partition] = records
        return found

    def positions(self) -> dict[str, Positions]:
        """Topic -> where the next poll begins, with the ids that make it mean something. Waits until dead letters are
        kept."""
        if self._producer is not None:
            self._producer.flush(timeout=30)
        found: dict[str, Positions] = {topic: {**identity, "offsets": {}} for topic, identity in self._identity.items()}
        for tp in self.assigned:
            found[tp.topic]["offsets"][str(tp.partition)] = self._position(tp)
        return found

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
        ends = {tp: self._consumer.highwater(tp) for tp in self.assigned}
        return sum(max(0, end - self._position(tp)) for tp, end in ends.items() if end is not None)

    def heads(self) -> dict[TopicPartition, int]:
        """Where each partition ends now, for a reader of committed records."""
        return dict(self._consumer.end_offsets(self.assigned))

    def passed(self, heads: Mapping[TopicPartition, int]) -> bool:
        """Whether everything below `heads` was read."""
        return all(self._position(tp) >= end for tp, end in heads.items())

    def bury(self, topic: str, partition: int, offset: int, line: bytes, kind: str, reason: str) -> None:
        """Sends a bad line to the topic's dead letters, with the kind of its fault and the reason."""
        self.dead += 1
        log.warning("%s %d:%d cannot be used: %s; kept in %s", topic, partition, offset, reason, DEAD[topic])
        if self._producer is None:
            self._producer = KafkaProducer(bootstrap_servers=self._bootstrap, bootstrap_timeout_ms=5000)
        self._producer.send(DEAD[topic], dead(topic, line, kind, reason, partition, offset))

    def close(self) -> None:
        """Soon, whether a broker answers or not: what it has not taken by now is nobody's commit."""
        self._consumer.close(timeout_ms=1000)
        if self._producer is not None:
            with contextlib.suppress(KafkaError):
                self._producer.close(timeout=1)
