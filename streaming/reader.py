"""Reads topics from committed positions on, read_committed, for consumers that keep their own positions.

    reader = Reader("127.0.0.1:9092", ["examples"], {"examples": manifest.positions})
    for (topic, partition), records in reader.poll(50, 4096).items(): ...
    reader.positions()["examples"]      # belongs into the commit of what was read

A consumer commits its positions together with what it made of the records. There is no consumer group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, KafkaTimeoutError, OffsetOutOfRangeError

from common import process
from common.errors import InputError
from streaming.dead_letters import DeadLetters, dead
from streaming.topics import DEAD

log = process.logger("reader")

ASK_WITHIN_MS = 500
"""A reader that asks for its lag waits no longer than this for the broker."""

GATHERED_BYTES = 2**20

Positions = dict[str, Any]
"""{"cluster": id, "topic": name, "topic_id": id, "offsets": {partition: next offset}}"""


class ForeignTopic(InputError):
    """Committed positions belong to another cluster or topic than the given one."""


class PositionGone(InputError):
    """A committed position is no longer in its topic: records after it are lost."""


class NewPartitions(InputError):
    """A topic got partitions while it was read."""


class Beats:
    """The newest heartbeat of every partition, or of every partition and subtask of the join. It never falls."""

    def __init__(self, committed: Mapping[str, int] | None = None) -> None:
        """`committed`: what `by_key` returned."""
        self._newest: dict[tuple[int, int], int] = {}
        self._subtasks = 1 if committed else 0
        for key, ms in (committed or {}).items():
            partition, subtask, subtasks = (int(x) for x in key.split("/"))
            self.see(partition, ms, subtask, subtasks)

    def see(self, partition: int, ms: int, subtask: int = 0, subtasks: int = 1) -> None:
        key = partition, subtask
        self._newest[key] = max(ms, self._newest.get(key, -1))
        self._subtasks = subtasks

    def least(self, partitions: Sequence[int]) -> int:
        """The least heartbeat of these partitions and all subtasks; -1 while one of them has sent none."""
        keys = [(p, s) for p in partitions for s in range(self._subtasks)]
        return min((self._newest.get(key, -1) for key in keys), default=-1)

    def by_key(self) -> dict[str, int]:
        """The newest heartbeats by `partition/subtask/subtasks`, for a commit."""
        return {f"{p}/{s}/{self._subtasks}": ms for (p, s), ms in sorted(self._newest.items()) if s < self._subtasks}


class Reader:
    """Reads all partitions of `topics`. Raises KafkaError while no broker answers, ForeignTopic for another topic.

    Errors name the owner of the positions (`whose`) and tell what to do (`advice`).
    """

    def __init__(
        self, bootstrap: str, topics: Sequence[str], positions: Mapping[str, Positions],
        whose: str = "the log's", advice: str = "begin a new lineage (python -m training.learn.batch_pass)",
        patience_ms: int = 0,
    ) -> None:  # fmt: skip
        """`patience_ms`: the broker gathers GATHERED_BYTES for an answer, but no longer than this."""
        self._bootstrap, self._whose, self._advice = bootstrap, whose, advice
        self.dead = 0
        self._letters = DeadLetters(bootstrap)
        self._identity, self.assigned = self._look(topics)
        offsets: dict[TopicPartition, int] = {}
        for topic in topics:
            committed = positions.get(topic) or {}
            for name, actual in self._identity[topic].items():
                if committed and committed[name] != actual:
                    raise ForeignTopic(
                        f"kafka {bootstrap}: {name} is {actual!r}, but {whose} positions are of"
                        f" {committed[name]!r}: {advice} or give the right broker"
                    )
            offsets |= {TopicPartition(topic, int(p)): int(o) for p, o in committed.get("offsets", {}).items()}
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a position that is gone is an error
            isolation_level="read_committed",
            fetch_min_bytes=GATHERED_BYTES if patience_ms else 1,
            fetch_max_wait_ms=patience_ms or 100,
            metadata_max_age_ms=10_000,  # new partitions are noticed
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
        """(topic, partition) -> records in their order. Waits at most `timeout_ms` for the first one.

        Raises PositionGone.
        """
        try:
            polled = self._consumer.poll(timeout_ms=timeout_ms, max_records=most)
        except OffsetOutOfRangeError as e:
            ((tp, offset),) = e.args[0].items()
            raise PositionGone(
                f"kafka {self._bootstrap}: {tp.topic} partition {tp.partition} no longer has offset {offset} of"
                f" {self._whose} positions, records are lost (retention?): {self._advice}"
            ) from e
        self._next |= {tp: records[-1].offset + 1 for tp, records in polled.items()}
        return {(tp.topic, tp.partition): records for tp, records in polled.items()}

    def positions(self) -> dict[str, Positions]:
        """Topic -> the ids of cluster and topic, and the offset of each partition at which the next poll begins.

        Raises KafkaError if a dead letter is not acknowledged in time: no commit may pass a line that nobody has.
        Raises NewPartitions.
        """
        self._letters.settle()
        self._refuse_new_partitions()
        positions: dict[str, Positions] = {topic: {**ids, "offsets": {}} for topic, ids in self._identity.items()}
        for tp in self.assigned:
            positions[tp.topic]["offsets"][str(tp.partition)] = self._position(tp)
        return positions

    def _refuse_new_partitions(self) -> None:
        """Raises NewPartitions if a topic has some that nobody reads: a process that starts again reads them."""
        for topic in self._identity:
            there, read = self._consumer.partitions_for_topic(topic) or set(), set(self.partitions(topic))
            if there - read:
                raise NewPartitions(
                    f"kafka {self._bootstrap}: topic {topic} has {len(there)} partitions, and this process reads"
                    f" {len(read)}; start the platform again with the setting partitions = {len(there)}"
                )

    def _position(self, tp: TopicPartition) -> int:
        # The consumer's own position is past commit markers, which have offsets too. It may be unknown for a moment.
        try:
            position = self._consumer.position(tp, timeout_ms=1000)
        except KafkaError:
            position = None
        following: int = self._next[tp]
        return max(following, int(position or 0))

    def lag(self) -> float:
        """The number of records between the positions and the ends of the partitions; NaN if no broker answers soon."""
        try:
            ends = self._consumer.end_offsets(self.assigned, timeout_ms=ASK_WITHIN_MS)
        except KafkaError:
            return math.nan
        return float(sum(max(0, end - self._position(tp)) for tp, end in ends.items()))

    def heads(self) -> dict[TopicPartition, int]:
        """The offset at which each partition ends now, for a reader of committed records."""
        return dict(self._consumer.end_offsets(self.assigned))

    def passed(self, heads: Mapping[TopicPartition, int]) -> bool:
        """Returns whether everything below `heads` was read."""
        return all(self._position(tp) >= end for tp, end in heads.items())

    def bury(self, topic: str, partition: int, offset: int, line: bytes, kind: str, reason: str) -> None:
        """Sends a bad line to the topic's dead letters. Never raises: `positions` waits for those that got lost."""
        self.dead += 1
        log.warning("%s %d:%d cannot be used: %s; goes to %s", topic, partition, offset, reason, DEAD[topic])
        self._letters.send(DEAD[topic], dead(topic, line, kind, reason, partition, offset))

    def close(self) -> None:
        """Closes its clients in about two seconds, whether a broker answers or not."""
        self._consumer.close(timeout_ms=1000)
        self._letters.close()
