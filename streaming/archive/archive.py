"""Reads an archive: the examples, impressions and actions of an interval of event time (docs/archive.md).

archive = Archive("var/local/archive", declaration)
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
from streaming.declaration import Declaration
from streaming.growth import Declarations
from streaming.topics import ACTIONS, EXAMPLES, IMPRESSIONS

TOPICS = (EXAMPLES, IMPRESSIONS, ACTIONS)


class NotArchived(InputError):
    """An interval is not in the archive, or not yet. The message names what is there."""


class Archive:
    """Reads an archive's folder, without locks, and anew at each call.

    Its tables have the columns of `declaration` (default: that of its newest commit), also for days before the source
    grew.
    """

    def __init__(self, path: Path | str, declaration: Declaration | None = None) -> None:
        self.path, self._given = Path(path), declaration

    def until_ms(self, topic: str) -> int:
        """Event time up to which the topic is complete; -1 while that is unknown."""
        state = commits.read(self.path)
        return state[0].until_ms.get(topic, -1) if state else -1

    def since_ms(self, topic: str) -> int:
        """Earliest event time of the topic in the archive; -1 while there is none."""
        state = commits.read(self.path)
        return state[0].since_ms.get(topic, -1) if state else -1

    def read(self, topic: str, begin_ms: int, end_ms: int) -> pa.Table:
        """Reads the records with begin_ms <= time < end_ms, in order of (time, partition, offset)."""
        for attempt in range(5):
            newest, files = self._complete(topic, begin_ms, end_ms)
            declaration = self._declaration(newest)
            inside = {n: f for n, f in files.items() if f.begin_ms < end_ms and f.end_ms >= begin_ms}
            try:
                parts = [commits.load(self.path, n, f, declaration) for n, f in inside.items()]
            except FileNotFoundError:  # merged meanwhile: the newest manifest names the merged file
                if attempt == 4:
                    raise
                continue
            if not parts:
                return self._nothing(topic, files, declaration)
            table = pa.concat_tables(parts)
            time_ms = table[TIME[topic]]
            inner = pc.and_(pc.greater_equal(time_ms, begin_ms), pc.less(time_ms, end_ms))
            return commits.by_time(table.filter(inner), topic).combine_chunks()
        raise AssertionError

    def positions(self, topic: str, end_ms: int) -> dict[str, Any]:
        """The positions at which the data before `end_ms` ends: each partition's first record at or after it."""
        newest, files = self._complete(topic, -1, end_ms)
        positions = newest.positions[topic]
        offsets = {p: int(o) for p, o in positions["offsets"].items()}
        for name, file in files.items():
            if file.end_ms < end_ms:
                continue
            places = {p: first for p, (first, _) in file.places.items()}
            if file.begin_ms < end_ms:
                table = commits.load(self.path, name, file, None)
                table = table.filter(pc.greater_equal(table[TIME[topic]], end_ms))
                least = table.group_by("partition").aggregate([("offset", "min")]).to_pylist()
                places = {str(row["partition"]): row["offset_min"] for row in least}
            offsets |= {p: min(first, offsets[p]) for p, first in places.items()}
        return {**positions, "offsets": {p: offsets[p] for p in sorted(offsets, key=int)}}

    def _complete(self, topic: str, begin_ms: int, end_ms: int) -> tuple[Commit, dict[str, File]]:
        """The newest commit and the topic's files. Raises NotArchived unless the commit has the whole interval."""
        if topic not in TOPICS:
            raise ValueError(f"topic is {topic!r}, allowed are {', '.join(TOPICS)}")
        if end_ms <= begin_ms:
            raise ValueError(f"the interval ends at {end_ms}, allowed is later than its begin {begin_ms}")
        if (state := commits.read(self.path)) is None:
            raise NotArchived(f"{self.path}: there is no archive (python -m streaming.archive.archiver writes one)")
        newest, files = state
        until, since = newest.until_ms.get(topic, -1), newest.since_ms.get(topic, -1)
        interval = f"of {_moment(begin_ms)} to {_moment(end_ms)}" if begin_ms >= 0 else f"before {_moment(end_ms)}"
        if until < end_ms - 1:
            progress = f"archived until {_moment(until)}" if until >= 0 else "no progress of it is archived yet"
            raise NotArchived(f"{self.path}: {topic} {interval}: not complete, {progress}")
        if end_ms <= since:
            raise NotArchived(f"{self.path}: {topic} {interval}: before the archive begins, at {_moment(since)}")
        return newest, {n: f for n, f in files.items() if f.topic == topic}

    def _declaration(self, newest: Commit) -> Declaration | None:
        """The declaration whose columns the tables have; None if neither caller nor folder has one."""
        declarations = Declarations(self.path)
        if self._given is None:
            return declarations.read(newest.declaration)
        if newest.declaration != self._given.sha256:
            declarations.grown(newest.declaration, self._given, "another archive")
        return self._given

    def _nothing(self, topic: str, files: Mapping[str, File], declaration: Declaration | None) -> pa.Table:
        """A table without rows, with the columns of the topic's files."""
        for name, file in files.items():
            return commits.load(self.path, name, file, declaration).slice(0, 0)
        raise NotArchived(f"{self.path}: {topic}: no record of it was ever archived")


def _moment(ms: int) -> str:
    """A time for people, and in milliseconds."""
    return f"{commits.moment(ms)} ({ms})"
