"""Event time of a platform: live it follows the broker's stamps, in a replay the one process that holds the lease.

    event_time = EventTime(max_disorder_ms=60_000)             # live
    event_time = EventTime(max_disorder_ms=1000, lease="9f3c") # the event time of a replay

docs/example.md, "Event time", says who may do what. The join has the same rules in PartitionTime.java and Edge.java.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.process import Arguments, at_least

MAX_DISORDER_MS = 60_000
FUTURE_MS = 3_600_000
"""In a replay, an event may be ahead of the newest heartbeat before it by this time at most."""


@dataclass(frozen=True)
class EventTime:
    """`max_disorder_ms`: how far clocks may be apart, and how late a record may come. `lease`: empty if live."""

    max_disorder_ms: int = MAX_DISORDER_MS
    lease: str = ""

    def of(self, stamp_ms: int, event: Mapping[str, Any]) -> int | None:
        """The event time that a record tells of its partition; None if it tells nothing.

        `stamp_ms` is the record's Kafka timestamp, `event` its message; empty for a message that breaks the contract.
        """
        if not self.lease:
            return stamp_ms
        return event["heartbeat_ms"] if event.get("lease") == self.lease and "heartbeat_ms" in event else None

    def is_future(self, ts_ms: int, time_ms: int) -> bool:
        """Whether the join refuses an event, because it is ahead of its partition's time (live: of its own stamp)."""
        return ts_ms > time_ms + (FUTURE_MS if self.lease else self.max_disorder_ms)

    def closed_ms(self, least_ms: int) -> int:
        """The time that the join has passed when the slowest partition is at `least_ms`."""
        return least_ms - self.max_disorder_ms - 1

    @staticmethod
    def arguments(parser: Arguments) -> None:
        parser.add_argument(
            "--max-disorder-ms", type=at_least(0), default=MAX_DISORDER_MS, metavar="N",
            help="how far clocks may be apart, and how late a record may come (default: %(default)s)",
        )  # fmt: skip
        parser.add_argument("--lease", default="", help="of the replay that owns the clock (default: none, live)")

    @classmethod
    def of_arguments(cls, args: argparse.Namespace) -> EventTime:
        return cls(args.max_disorder_ms, args.lease)
