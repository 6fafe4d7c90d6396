"""The commits of an archive: manifests written last, the files they name, and the one writer (docs/archive.md).

with Writer(path, source, declaration) as writer:             # the same declaration as before, or one grown from it
    writer.commit(tables, positions, beats, until_ms)      # topic -> table; returns when it exists
newest, files = read(path)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.disk import flush_folder, flushed, hold, publish
from common.errors import InputError
from streaming.archive.columns import TIME, filled
from streaming.declaration import Declaration
from streaming.growth import Declarations

FORMAT = 2
HOUR_MS = 3_600_000
WHOLE_EVERY = 100
"""Every so many commits a manifest names all files. A reader opens no more manifests than that."""


class ArchiveError(InputError):
    """The archive's folder is damaged, or of another declaration. The message names the file and what is wrong."""


@dataclass(frozen=True)
class File:
    """One Parquet file: its records' times from begin_ms to end_ms (inclusive); partition -> [first, last offset]."""

    topic: str
    hour: str
    rows: int
    begin_ms: int
    end_ms: int
    places: dict[str, list[int]]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """One manifest (docs/archive.md)."""

    commit: int
    previous: str
    source: str
    declaration: str
    positions: dict[str, dict[str, Any]]
    beats: dict[str, dict[str, int]]
    since_ms: dict[str, int]
    until_ms: dict[str, int]
    whole: bool
    files: dict[str, File]
    gone: list[str]

    def to_json(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def read(cls, path: Path) -> Commit:
        """Reads a manifest. Raises FileNotFoundError, or ArchiveError if the file is no manifest."""
        try:
            fields = json.loads(path.read_bytes())
            if (version := fields.pop("format")) != FORMAT:
                raise ValueError(f"format is {version}, allowed is {FORMAT}: begin a new folder")
            files = {name: File(**f) for name, f in fields.pop("files").items()}
            manifest = cls(files=files, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise ArchiveError(f"{path}: not a manifest: {e}") from e
        if path.name != _name(manifest.commit):
            raise ArchiveError(f"{path}: is commit {manifest.commit}, expected {path.stem}")
        return manifest


def _name(commit: int) -> str:
    return f"{commit:09d}.json"


def hour_name(hour: int) -> str:
    """Hours since 1970 as 2022-05-04T13 (UTC)."""
    return datetime.fromtimestamp(hour * HOUR_MS // 1000, UTC).strftime("%Y-%m-%dT%H")


def moment(ms: int) -> str:
    """Milliseconds since 1970 as 2022-05-04 13:00:00 (UTC)."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def manifests(path: Path) -> list[Path]:
    """The paths of all manifests, oldest first."""
    return sorted((path / "manifests").glob("[0-9]*.json"))


def read(path: Path) -> tuple[Commit, dict[str, File]] | None:
    """Reads the newest commit and the files that exist; None while there is no commit."""
    for attempt in range(5):
        try:
            return _read(path)
        except FileNotFoundError:  # the writer removed a manifest meanwhile: there is a newer whole one
            if attempt == 4:
                raise
    return None


def _read(path: Path) -> tuple[Commit, dict[str, File]] | None:
    commits: list[Commit] = []
    for name in reversed(manifests(path)):
        commit = Commit.read(name)
        if commits and commit.commit != commits[-1].commit - 1:
            raise ArchiveError(f"{path / 'manifests' / _name(commits[-1].commit - 1)}: missing: a gap")
        commits.append(commit)
        if commit.whole:
            break
    if not commits:
        return None
    files: dict[str, File] = {}
    for commit in reversed(commits):
        files = {n: f for n, f in files.items() if n not in commit.gone} | commit.files
    return commits[0], files


def by_time(table: pa.Table, topic: str) -> pa.Table:
    """Sorts by (time, partition, offset): the order does not depend on what was committed together."""
    return table.sort_by([(TIME[topic], "ascending"), ("partition", "ascending"), ("offset", "ascending")])


def load(path: Path, name: str, file: File, declaration: Declaration | None) -> pa.Table:
    """Reads one file and checks it against its manifest. The table has the columns of `declaration`, if it is there."""
    data = (path / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise ArchiveError(f"{path / name}: {len(data)} bytes of another sha256 than its manifest says")
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    return table if declaration is None else filled(table, file.topic, declaration)


class Writer:
    """Writes an archive and holds its lock. `newest` is the last commit or None, `files` are all that exist."""

    def __init__(self, path: Path, source: str, declaration: Declaration) -> None:
        self.path, self._source, self._declaration = path, source, declaration
        self._lock = hold(path / "LOCK", "an archive has one writer")
        try:
            self._continue()
        except BaseException:
            self._lock.close()
            raise

    def _continue(self) -> None:
        """Reads what the writer before committed, and removes what it left besides."""
        (self.path / "manifests").mkdir(exist_ok=True)
        state = read(self.path)
        self.newest: Commit | None = state[0] if state else None
        self.files: dict[str, File] = state[1] if state else {}
        declarations = Declarations(self.path)
        if self.newest and self.newest.declaration != self._declaration.sha256:
            declarations.grown(self.newest.declaration, self._declaration, "begin a new folder (--to)")
        declarations.keep(self._declaration)
        self._clear()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _clear(self) -> None:
        """Removes files that no manifest names, and manifests before the newest whole one."""
        for path in self.path.glob("*/*/*.parquet"):
            if str(path.relative_to(self.path)) not in self.files:
                path.unlink()
        for path in (self.path / "manifests").glob("*.new"):
            path.unlink()
        self._drop_manifests()

    def _drop_manifests(self) -> None:
        paths = manifests(self.path)
        whole = next((i for i in reversed(range(len(paths))) if Commit.read(paths[i]).whole), 0)
        for path in paths[:whole]:
            path.unlink()

    def commit(
        self,
        tables: Mapping[str, pa.Table],
        positions: dict[str, dict[str, Any]],
        beats: dict[str, dict[str, int]],
        until_ms: dict[str, int],
    ) -> Commit:
        """Commits records (topic -> table of its schema) and the positions after them. If it fails, nothing is
        committed, and the same may be tried again."""
        number = self.newest.commit + 1 if self.newest else 0
        files, gone = self._write(number, tables, until_ms)
        since = dict(self.newest.since_ms) if self.newest else {}
        for file in files.values():
            since[file.topic] = min(file.begin_ms, since.get(file.topic, file.begin_ms))
        for topic, ms in until_ms.items():
            if ms >= 0:
                since.setdefault(topic, ms)
        for folder in sorted({(self.path / name).parent for name in files}):
            flush_folder(folder)
            flush_folder(folder.parent)
        live = {n: f for n, f in self.files.items() if n not in gone} | files
        whole = number % WHOLE_EVERY == 0
        previous = hashlib.sha256(manifests(self.path)[-1].read_bytes()).hexdigest() if self.newest else ""
        commit = Commit(
            number, previous, self._source, self._declaration.sha256, positions, beats, since, until_ms, whole,
            live if whole else files, gone,
        )  # fmt: skip
        folder = self.path / "manifests"
        publish(folder / f"{_name(number)}.new", folder / _name(number), commit.to_json())
        self.newest, self.files = commit, live
        for name in gone:
            (self.path / name).unlink()
        if whole:
            self._drop_manifests()
        return commit

    def _write(
        self, number: int, tables: Mapping[str, pa.Table], until_ms: Mapping[str, int]
    ) -> tuple[dict[str, File], list[str]]:
        """Writes the commit's files, one a topic and hour. Returns them, and the files that were merged into them."""
        files: dict[str, File] = {}
        gone: list[str] = []
        parts = {(t, h): part for t, table in tables.items() for h, part in _by_hour(table, t)}
        by_hour: dict[tuple[str, str], list[str]] = {}
        for name, file in self.files.items():
            by_hour.setdefault((file.topic, file.hour), []).append(name)
        for (topic, hour), names in by_hour.items():
            new = (topic, hour) in parts
            if len(names) + new > 1 and _end_ms(hour) <= until_ms.get(topic, -1):
                old = [load(self.path, n, self.files[n], self._declaration) for n in names]
                parts[topic, hour] = pa.concat_tables([*old, *([parts[topic, hour]] if new else [])])
                gone += names
        for (topic, hour), part in parts.items():
            name = f"{topic}/{hour}/{number:09d}.parquet"
            files[name] = self._file(name, topic, hour, by_time(part, topic))
        return files, gone

    def _file(self, name: str, topic: str, hour: str, table: pa.Table) -> File:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=False)  # zstd finds what repeats by itself
        data = bytes(sink.getvalue())
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        flushed(self.path / name, data)
        times, partitions, offsets = (table[n].to_numpy() for n in (TIME[topic], "partition", "offset"))
        places = {
            str(p): [int(offsets[partitions == p].min()), int(offsets[partitions == p].max())]
            for p in np.unique(partitions)
        }
        digest = hashlib.sha256(data).hexdigest()
        return File(topic, hour, table.num_rows, int(times[0]), int(times[-1]), places, len(data), digest)


def _end_ms(hour: str) -> int:
    """The last millisecond of an hour."""
    return int(datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp()) * 1000 + HOUR_MS - 1


def _by_hour(table: pa.Table, topic: str) -> Iterator[tuple[str, pa.Table]]:
    hours = table[TIME[topic]].to_numpy() // HOUR_MS
    for hour in np.unique(hours):
        yield hour_name(int(hour)), table.filter(pa.array(hours == hour))
