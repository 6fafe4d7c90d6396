"""An interval [begin, end) of event time: the slow half's unit of work, a day more often than not.

Interval.of(day="2022-05-07")                                       # that day, UTC
Interval.of(begin="2022-05-07T00:00", end="2022-05-07T06:00")
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_NAME = "%Y-%m-%dT%H%M%S"


def milliseconds(what: str, text: str) -> int:
    """ISO date or time, or ms, as ms of event time; without an offset it is UTC. Raises ValueError naming `what`."""
    if text.isdigit() and len(text) > 8:
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{what} is {text!r}; allowed is a date or time such as 2022-05-07T06:00:00") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def text(ms: int) -> str:
    """2022-05-07T06:00:00, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass(frozen=True)
class Interval:
    """begin_ms <= t < end_ms, on whole seconds, so that its name says all of it."""

    begin_ms: int
    end_ms: int

    def __post_init__(self) -> None:
        if self.end_ms <= self.begin_ms:
            raise ValueError(f"begin is {text(self.begin_ms)} and end {text(self.end_ms)}; allowed is begin < end")
        if self.begin_ms % 1000 or self.end_ms % 1000:
            raise ValueError(f"begin is {self.begin_ms} ms and end {self.end_ms} ms; allowed are whole seconds")

    @classmethod
    def of(cls, day: str = "", begin: str = "", end: str = "") -> Interval:
        """From what a person gives: a day, or begin and end."""
        if day and not begin and not end:
            start = milliseconds("day", day[:10])
            return cls(start, start + 24 * 3600 * 1000)
        if begin and end and not day:
            return cls(milliseconds("begin", begin), milliseconds("end", end))
        raise ValueError(f"day is {day!r}, begin {begin!r}, end {end!r}; allowed is a day, or both begin and end")

    @classmethod
    def within(cls, begin_ms: int, end_ms: int) -> Interval:
        """What to take of [begin_ms, end_ms) when nobody said: the last whole day that has a day after it, else the
        first two thirds, so that something remains to judge on."""
        day = int(timedelta(days=1).total_seconds() * 1000)
        last = end_ms // day * day - day
        if last - day >= begin_ms:
            return cls(last - day, last)
        begin = begin_ms // 1000 * 1000
        return cls(begin, begin + max(1, (end_ms - begin) * 2 // 3000) * 1000)

    @property
    def name(self) -> str:
        """2022-05-07T000000_2022-05-08T000000: sorts by time, good in a path and in a URL."""
        return "_".join(datetime.fromtimestamp(ms / 1000, UTC).strftime(_NAME) for ms in (self.begin_ms, self.end_ms))

    @classmethod
    def named(cls, name: str) -> Interval:
        begin, end = (datetime.strptime(part, _NAME).replace(tzinfo=UTC) for part in name.split("_"))
        return cls(round(begin.timestamp() * 1000), round(end.timestamp() * 1000))

    def after(self) -> Interval:
        """The one of the same length that begins where this one ends."""
        return Interval(self.end_ms, 2 * self.end_ms - self.begin_ms)

    def __str__(self) -> str:
        return f"[{text(self.begin_ms)}, {text(self.end_ms)})"
