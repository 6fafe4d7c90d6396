"""The commits of an archive: manifests written last, the files they name, and the one writer (docs/archive.md).

with Writer(path, source, declaration) as writer:
    writer.commit(tables, positions, beats, until_ms)      # topic -> table; returns when it exists
newest, files = read(path)
"""

from __future__ import annotations

import fcntl
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

from common.disk import flush_folder, flushed, publish
from common.errors import InputError
from streaming.archive.columns import TIME

FORMAT = 2
HOUR_MS = 3_600_000
WHOLE_EVERY = 100
"""A manifest that names all files comes so often: a reader opens no more than this many."""


class ArchiveError(InputError):
    """Something is wrong with the archive's folder; the message names the file, what was found, what was expected."""


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
        """FileNotFoundError if it is not there, ArchiveError if it is no manifest."""
        try:
            fields = json.loads(path.read_bytes())
            if (version := fields.pop("format")) != FORMAT:
                raise ValueError(f"format is {version}, allowed is {FORMAT}: begin a new folder")
            files = {name: File(**f) for name, f in fields.pop("files").items()}
            found = cls(files=files, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise ArchiveError(f"{path}: not a manifest: {e}") from e
        if path.name != _name(found.commit):
            raise ArchiveError(f"{path}: is commit {found.commit}, expected {path.stem}")
        return found


def _name(commit: int) -> str:
    return f"{commit:09d}.json"


def hour_name(hour: int) -> str:
    """Hours since 1970 as 2022-05-04T13 (UTC)."""
    return datetime.fromtimestamp(hour * HOUR_MS // 1000, UTC).strftime("%Y-%m-%dT%H")


def moment(ms: int) -> str:
    """Milliseconds since 1970 as people read them (UTC)."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def manifests(path: Path) -> list[Path]:
    """All of them, oldest first."""
    return sorted((path / "manifests").glob("[0-9]*.json"))


def read(path: Path) -> tuple[Commit, dict[str, File]] | None:
    """The newest commit and all files that exist; None while there is no commit."""
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
    """In the order of (time, partition, offset): one order whatever was written together."""
    return table.sort_by([(TIME[topic], "ascending"), ("partition", "ascending"), ("offset", "ascending")])


def load(path: Path, name: str, file: File, schema: pa.Schema | None = None) -> pa.Table:
    """One file's records, checked against its manifest."""
    data = (path / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise ArchiveError(f"{path / name}: {len(data)} bytes of another sha256 than its manifest says")
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    return table if schema is None else table.cast(schema)


class Writer:
    """Holds the archive's lock. `newest` is its last commit, None in a new archive; `files` are all that exist."""

    def __init__(self, path: Path, source: str, declaration: str) -> None:
        self.path, self._source, self._declaration = path, source, declaration
        (path / "manifests").mkdir(parents=True, exist_ok=True)
        self._lock = open(path / "LOCK", "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ArchiveError(f"{path / 'LOCK'}: held by another process: an archive has one writer") from None
        try:
            self._continue(path, source, declaration)
        except BaseException:
            self._lock.close()
            raise

    def _continue(self, path: Path, source: str, declaration: str) -> None:
        """Reads what the writer before committed, and removes what it did not."""
        found = read(path)
        self.newest: Commit | None = found[0] if found else None
        self.files: dict[str, File] = found[1] if found else {}
        if self.newest and self.newest.declaration != declaration:
            raise ArchiveError(
                f"{path}: was written under declaration {self.newest.declaration[:12]} of source {self.newest.source},"
                f" given is {declaration[:12]} of {source}: begin a new folder"
            )
        self._clear()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _clear(self) -> None:
        """What a killed writer left: files that no manifest names, manifests before the newest whole one."""
        for path in self.path.glob("*/*/*.parquet"):
            if str(path.relative_to(self.path)) not in self.files:
                path.unlink()
        for path in (self.path / "manifests").glob("*.new"):
            path.unlink()
        self._drop_manifests()

    def _drop_manifests(self) -> None:
        kept = manifests(self.path)
        whole = next((i for i in reversed(range(len(kept))) if Commit.read(kept[i]).whole), 0)
        for path in kept[:whole]:
            path.unlink()

    def commit(
        self,
        tables: Mapping[str, pa.Table],
        positions: dict[str, dict[str, Any]],
        beats: dict[str, dict[str, int]],
        until_ms: dict[str, int],
    ) -> Commit:
        """Keep these records (topic -> table of its schema) and where reading goes on. If it fails, nothing is kept
        and the same may be tried again."""
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
        made = Commit(
            number, previous, self._source, self._declaration, positions, beats, since, until_ms, whole,
            live if whole else files, gone,
        )  # fmt: skip
        folder = self.path / "manifests"
        publish(folder / f"{_name(number)}.new", folder / _name(number), made.to_json())
        self.newest, self.files = made, live
        for name in gone:
            (self.path / name).unlink()
        if whole:
            self._drop_manifests()
        return made

    def _write(
        self, number: int, tables: Mapping[str, pa.Table], until_ms: Mapping[str, int]
    ) -> tuple[dict[str, File], list[str]]:
        """The commit's files, one a topic and hour; and those they took in, where an hour is closed."""
        files: dict[str, File] = {}
        gone: list[str] = []
        parts = {(t, h): part for t, table in tables.items() for h, part in _by_hour(table, t)}
        kept: dict[tuple[str, str], list[str]] = {}
        for name, file in self.files.items():
            kept.setdefault((file.topic, file.hour), []).append(name)
        for (topic, hour), names in kept.items():
            new = (topic, hour) in parts
            if len(names) + new > 1 and _end_ms(hour) <= until_ms.get(topic, -1):
                old = [load(self.path, n, self.files[n]) for n in names]
                parts[topic, hour] = pa.concat_tables([*old, *([parts[topic, hour]] if new else [])])
                gone += names
        for (topic, hour), part in parts.items():
            name = f"{topic}/{hour}/{number:09d}.parquet"
            files[name] = self._file(name, topic, hour, by_time(part, topic))
        return files, gone

    def _file(self, name: str, topic: str, hour: str, table: pa.Table) -> File:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
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
