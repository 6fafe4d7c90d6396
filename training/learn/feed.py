"""Reads the examples topic from the committed positions on, and decodes it by column.

A line that is no example goes to `examples.dead` with the reason. The other lines of its batch are learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streaming.declaration import Declaration
from streaming.example import Batch, decode
from streaming.reader import Beats, Reader
from streaming.topics import EXAMPLES


class Feed:
    """Reads all partitions of `examples`, with `reader`. Raises KafkaError while no broker answers.

    Raises ForeignTopic if the positions are of another topic, PositionGone if Kafka no longer has their records.
    """

    def __init__(self, bootstrap: str, declaration: Declaration, positions: Mapping[str, Any]) -> None:
        self._declaration, self._beats = declaration, Beats()
        self.reader = Reader(bootstrap, [EXAMPLES], {EXAMPLES: dict(positions)})
        self.close = self.reader.close

    def poll(self, timeout_ms: int, most: int) -> list[Batch]:
        """Reads one batch a partition. Waits at most `timeout_ms` for the first record."""
        batches = []
        for (topic, partition), records in self.reader.poll(timeout_ms, most).items():
            lines = [r.value or b"" for r in records]
            batch = decode(lines, self._declaration)
            for place, reason in batch.bad:
                self.reader.bury(topic, partition, records[place].offset, lines[place], "example", reason)
            for beat in batch.progress:
                self._beats.see(partition, beat.heartbeat_ms, beat.subtask, beat.subtasks)
            batches.append(batch)
        return batches

    def read_until_ms(self) -> int:
        """Returns the event time up to which all was read: the least of the newest heartbeats of all partitions and
        subtasks; -1 while one of them has sent none."""
        return self._beats.least(self.reader.partitions(EXAMPLES))

    def positions(self) -> dict[str, Any]:
        """Returns where the next poll begins, with the ids of cluster and topic.

        Raises KafkaError while the broker has not acknowledged a dead letter; each call sends it again.
        """
        return self.reader.positions()[EXAMPLES]
