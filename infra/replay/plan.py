"""Plans a demo's replay: its pace, the time between two deltas, and how old the models are in event time.

A replay of n times the pace makes a second of wall time n seconds of event time. So a `sync_every` that is short for an
app is long for a replay. The plan lets the served model be as old as a product's would be, and the frozen copy as old
as a retrain at the replay's length would make it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from streaming.source import Exposure, Source

AGE_S = 600.0
"""The event time between two deltas that a plan is for."""
SHORTEST_S, LONGEST_S = 1.0, 60.0
"""A delta each second is what two cores hold; each minute is the product's own default."""
DAY_MS = 86_400_000


class Plan(NamedTuple):
    """The replay of a source's live part in `wall_s` seconds. `last_day` are the last exposures before it."""

    span_ms: int
    wall_s: float
    exposures: int
    last_day: list[Exposure]

    @classmethod
    def of(cls, source: Source, wall_s: float) -> Plan:
        """Reads the source once. Raises ValueError if it has no live exposure."""
        last_day: deque[Exposure] = deque()
        for exposure in source.history():
            last_day.append(exposure)
            while last_day[0].ts_ms < exposure.ts_ms - DAY_MS:
                last_day.popleft()
        times = [exposure.ts_ms for exposure in source.live()]
        if not times:
            raise ValueError("the source has no live exposure: there is nothing to replay")
        return cls(times[-1] - times[0] + source.declaration.window_ms, wall_s, len(times), list(last_day))

    @property
    def speed(self) -> float:
        """Event time over wall time."""
        return self.span_ms / 1000 / self.wall_s

    @property
    def sync_every_s(self) -> float:
        """The time between two deltas that is AGE_S of event time, as far as two cores and a minute allow."""
        return min(LONGEST_S, max(SHORTEST_S, round(AGE_S / self.speed, 1)))

    def figures(self, sync_every_s: float) -> dict[str, float]:
        """The plan's figures for report.json."""
        return {
            "speed": round(self.speed, 1),
            "event_s_per_sync": round(sync_every_s * self.speed, 1),
            "frozen_age_days": round(self.span_ms / DAY_MS, 2),
        }

    def text(self, sync_every_s: float) -> str:
        """Says to a person what is compared."""
        return (
            f"{self.exposures:,} impressions of {duration(self.span_ms / 1000)} in {duration(self.wall_s)}, at"
            f" {self.speed:,.0f} times their pace: a delta each {sync_every_s:g} s is one each"
            f" {duration(sync_every_s * self.speed)} of event time. The frozen copy is a retrain's: at the end it is"
            f" {duration(self.span_ms / 1000)} old."
        )


def duration(seconds: float) -> str:
    """7 days, 90 minutes or 45 s: the unit in which the number is at least 2."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
