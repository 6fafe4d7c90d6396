"""The archive as its readers see it: examples, impressions and actions of an interval of event time (docs/archive.md).

archive = Archive("var/local/archive")
day = archive.read("examples", begin_ms, end_ms)        # NotArchived while the interval is not complete
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from streaming.archive import commits
from streaming.archive.columns import TIME
from streaming.archive.commits import Commit, File
from streaming.topics import ACTIONS, EXAMPLES, IMPRESSIONS

TOPICS = (EXAMPLES, IMPRESSIONS, ACTIONS)


class NotArchived(InputError):
    """What was asked for is not in the archive, or not yet; the message says what is."""


class Archive:
    """An archive's folder as its readers see it: without locks, and anew at each call."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def until_ms(self, topic: str) -> int:
        """Event time up to which the topic is complete; -1 while nothing says so."""
        found = commits.read(self.path)
        return found[0].until_ms.get(topic, -1) if found else -1

    def since_ms(self, topic: str) -> int:
        """Earliest event time the archive knows of; -1 while there is none."""
        found = commits.read(self.path)
        return found[0].since_ms.get(topic, -1) if found else -1

    def read(self, topic: str, begin_ms: int, end_ms: int) -> pa.Table:
        """The records with begin_ms <= time < end_ms, in order of (time, partition, offset)."""
        for attempt in range(5):
            newest, files = self._complete(topic, begin_ms, end_ms)
            inside = {n: f for n, f in files.items() if f.begin_ms < end_ms and f.end_ms >= begin_ms}
            try:
                parts = [commits.load(self.path, n, f) for n, f in inside.items()]
            except FileNotFoundError:  # merged meanwhile: the newest manifest names what took them in
                if attempt == 4:
                    raise
                continue
            if not parts:
                return self._nothing(topic, files)
            table = pa.concat_tables(parts)
            time_ms = table[TIME[topic]]
            inner = pc.and_(pc.greater_equal(time_ms, begin_ms), pc.less(time_ms, end_ms))
            return commits.by_time(table.filter(inner), topic).combine_chunks()
        raise AssertionError

    def positions(self, topic: str, end_ms: int) -> dict[str, Any]:
        """Where the data before `end_ms` ends: each partition's first record at or after it (docs/archive.md)."""
        newest, files = self._complete(topic, -1, end_ms)
        found = newest.positions[topic]
        offsets = {p: int(o) for p, o in found["offsets"].items()}
        for name, file in files.items():
            if file.end_ms < end_ms:
                continue
            places = {p: first for p, (first, _) in file.places.items()}
            if file.begin_ms < end_ms:
                table = commits.load(self.path, name, file)
                table = table.filter(pc.greater_equal(table[TIME[topic]], end_ms))
                least = table.group_by("partition").aggregate([("offset", "min")]).to_pylist()
                places = {str(row["partition"]): row["offset_min"] for row in least}
            offsets |= {p: min(first, offsets[p]) for p, first in places.items()}
        return {**found, "offsets": {p: offsets[p] for p in sorted(offsets, key=int)}}

    def _complete(self, topic: str, begin_ms: int, end_ms: int) -> tuple[Commit, dict[str, File]]:
        """The newest commit and the topic's files, if the interval is whole in it."""
        if topic not in TOPICS:
            raise ValueError(f"topic is {topic!r}, allowed are {', '.join(TOPICS)}")
        if end_ms <= begin_ms:
            raise ValueError(f"the interval ends at {end_ms}, allowed is later than its begin {begin_ms}")
        found = commits.read(self.path)
        if found is None:
            raise NotArchived(f"{self.path}: there is no archive (python -m streaming.archive.archiver writes one)")
        newest, files = found
        until, since = newest.until_ms.get(topic, -1), newest.since_ms.get(topic, -1)
        asked = (
            f"{self.path}: {topic} of {_said(begin_ms)} to {_said(end_ms)}"
            if begin_ms >= 0
            else (f"{self.path}: {topic} before {_said(end_ms)}")
        )
        if until < end_ms - 1:
            known = f"archived until {_said(until)}" if until >= 0 else "no progress of it is archived yet"
            raise NotArchived(f"{asked}: not complete, {known}")
        if end_ms <= since:
            raise NotArchived(f"{asked}: before the archive begins, at {_said(since)}")
        return newest, {n: f for n, f in files.items() if f.topic == topic}

    def _nothing(self, topic: str, files: Mapping[str, File]) -> pa.Table:
        """No rows, with the topic's columns as its other files have them."""
        for name, file in files.items():
            return commits.load(self.path, name, file).slice(0, 0)
        raise NotArchived(f"{self.path}: {topic}: no record of it was ever archived")


def _said(ms: int) -> str:
    """A time as people read it, and as it was given."""
    return f"{commits.moment(ms)} ({ms})"
