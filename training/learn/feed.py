"""The examples topic as the trainer reads it: from the committed positions on, decoded by column.

Lines that are no example go to `examples.dead` with the reason, and the others of their batch are learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streaming.declaration import Declaration
from streaming.example import Batch, decode
from streaming.reader import Beats, Reader
from streaming.topics import EXAMPLES


class Feed:
    """All partitions of `examples`. Raises KafkaError while no broker answers, ForeignTopic for another topic."""

    def __init__(self, bootstrap: str, declaration: Declaration, positions: Mapping[str, Any]) -> None:
        self._declaration, self._beats = declaration, Beats()
        self._reader = Reader(bootstrap, [EXAMPLES], {EXAMPLES: dict(positions)})

    @property
    def dead(self) -> int:
        """Lines that were no example."""
        return self._reader.dead

    def poll(self, timeout_ms: int, most: int) -> list[Batch]:
        """What came, one batch a partition; waits at most `timeout_ms` for the first record."""
        found = []
        for (topic, partition), records in self._reader.poll(timeout_ms, most).items():
            lines = [r.value or b"" for r in records]
            batch = decode(lines, self._declaration)
            for place, reason in batch.bad:
                self._reader.bury(topic, partition, records[place].offset, lines[place], "example", reason)
            for beat in batch.progress:
                self._beats.see(partition, beat.heartbeat_ms, beat.subtask, beat.subtasks)
            found.append(batch)
        return found

    def read_until_ms(self) -> int:
        """Event time up to which all was read: the least of every partition's and subtask's newest progress; -1 if
        one of them has not spoken yet."""
        return self._beats.least(self._reader.partitions(EXAMPLES))

    def positions(self) -> dict[str, Any]:
        """Where the next poll begins, with the ids that make it mean something. Waits until dead letters are kept."""
        return self._reader.positions()[EXAMPLES]

    def lag(self) -> int:
        """Records between here and the newest known of each partition."""
        return self._reader.lag()

    def heads(self) -> Mapping[Any, int]:
        """Where each partition ends now."""
        return self._reader.heads()

    def passed(self, heads: Mapping[Any, int]) -> bool:
        """Whether everything below `heads` was read."""
        return self._reader.passed(heads)

    def close(self) -> None:
        self._reader.close()
