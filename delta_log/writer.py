"""The one writer of a lineage: the commit order of docs/delta.md, and what pruning may take away.

with Writer(log, lineage) as writer:
    manifest = writer.delta(Cut(...))      # returns when it exists, whatever dies afterwards
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from common.disk import flush_folder, flushed, publish
from delta_log.files import TableRows, Weight, encode, infos
from delta_log.log import Log
from delta_log.manifest import (
    MANIFEST,
    NEW_MANIFEST,
    LogBusy,
    LogError,
    Manifest,
    ModelInfo,
    folder_name,
    read_manifest,
)


@dataclass(frozen=True)
class Cut:
    """The state of training between two steps, or what changed of it: copied, so training may go on.

    `totals` is the number of rows of each whole table; `learned` is (count, sum) since the lineage began;
    `written_ms` is kind -> bin of 10 ms -> count.
    """

    source: str
    declaration: str
    model: ModelInfo
    tables: Mapping[str, TableRows]
    dense: Mapping[str, Weight]
    totals: Mapping[str, int]
    tick: int
    tick_times: Mapping[int, int] = field(default_factory=dict)
    positions: Mapping[str, Any] = field(default_factory=dict)
    learned: tuple[int, int] = (0, 0)
    learned_until_ms: int = -1
    written_ms: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    digest: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def hold(log: Log, lineage: str) -> IO[str]:
    """The lock of a lineage, for as long as the file is open; LogBusy names who has it."""
    log.path.mkdir(parents=True, exist_ok=True)
    path = log.path / f"{lineage}.lock"
    lock = open(path, "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise LogBusy(f"{path}: held by process {holder}: a lineage has one writer") from e
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def prune_lineages(log: Log, keep: int) -> list[str]:
    """Remove all lineages but the newest, the one that is served and those that have a writer; the names removed."""
    if keep < 1:
        raise ValueError(f"keep_lineages is {keep}, allowed is 1 or more")
    gone = []
    for name in log.lineages()[:-keep]:
        if name == log.serving():
            continue
        try:
            lock = hold(log, name)
        except LogBusy:
            continue
        with lock:
            # Under a name that is no lineage's: it is gone at once, whatever dies while it is removed.
            (log.path / name).rename(log.path / f".gone-{name}")
            (log.path / f"{name}.lock").unlink()
            (log.path / "candidates" / f"{name}.json").unlink(missing_ok=True)  # what a warm start knew of it
        gone.append(name)
    for folder in log.path.glob(".gone-*"):
        shutil.rmtree(folder)
    return gone


class Writer:
    """Holds one lineage's lock. `head` is its newest base-0 or delta, None in a new lineage."""

    def __init__(self, log: Log, lineage: str) -> None:
        self.log, self.lineage = log, lineage
        self._lock = hold(log, lineage)
        self.head: Manifest | None = None
        try:
            self._remove_unfinished()
            if log.seqs(lineage, "base"):
                base, deltas = log.chain(lineage)
                self.head = deltas[-1] if deltas else base
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        self._lock.close()

    def first_base(self, cut: Cut) -> Manifest:
        """base-0: a lineage begins."""
        if self.head is not None:
            raise LogError(f"{self.log.path / self.lineage}: has begun already, it stands at {self.head.name}")
        self.head = self._write("base", 0, "", cut)
        return self.head

    def delta(self, cut: Cut) -> Manifest:
        """The next delta. If it fails nothing is committed, and the next attempt has the same seq."""
        if self.head is None:
            raise LogError(f"{self.log.path / self.lineage}: has no base yet, so a delta has nothing to change")
        self.head = self._write("delta", self.head.seq + 1, self.head.link, cut)
        return self.head

    def base(self, seq: int, cut: Cut) -> Manifest:
        """A compacted base of the state as of delta `seq`."""
        return self._write("base", seq, self.log.manifest(self.lineage, "delta", seq).sha256, cut)

    def prune(self, keep_bases: int) -> list[str]:
        """Remove all but the newest bases, and the deltas no kept base needs; the names removed.

        Its manifest goes first, so what is half removed does not exist; the next writer removes the rest.
        """
        if keep_bases < 1:
            raise ValueError(f"keep_bases is {keep_bases}, allowed is 1 or more")
        bases = self.log.seqs(self.lineage, "base")
        kept = bases[-keep_bases:]
        gone = [folder_name("base", s) for s in bases if s not in kept]
        gone += [folder_name("delta", s) for s in self.log.seqs(self.lineage, "delta") if kept and s <= kept[0]]
        for name in gone:
            folder = self.log.path / self.lineage / name
            os.unlink(folder / MANIFEST)
            shutil.rmtree(folder)
        return gone

    def _remove_unfinished(self) -> None:
        """What a killed writer of this lineage left: folders without a manifest."""
        for folder in (self.log.path / self.lineage).glob("*-*/"):
            if not (folder / MANIFEST).exists():
                shutil.rmtree(folder)

    def _write(self, kind: str, seq: int, previous: str, cut: Cut) -> Manifest:
        folder = self.log.path / self.lineage / folder_name(kind, seq)
        if (folder / MANIFEST).exists():
            raise LogError(f"{folder}: exists already, and nothing in the log is ever rewritten")
        if folder.exists():  # an attempt of ours that failed
            shutil.rmtree(folder)
        if not folder.parent.exists():
            os.mkdir(folder.parent)
            flush_folder(self.log.path)
        os.mkdir(folder)
        files = {}
        for name, data in encode(cut.tables, cut.dense, removed=kind == "delta").items():
            flushed(folder / name, data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        flush_folder(folder)
        flush_folder(folder.parent)
        manifest = Manifest(
            kind=kind,
            lineage=self.lineage,
            seq=seq,
            previous=previous,
            created_ms=time.time_ns() // 1_000_000,
            source=cut.source,
            declaration=cut.declaration,
            model=cut.model,
            positions=dict(cut.positions),
            learned={"count": cut.learned[0], "sum": str(cut.learned[1])},
            learned_until_ms=cut.learned_until_ms,
            written_ms={k: {str(ms): n for ms, n in v.items()} for k, v in cut.written_ms.items()},
            tick=cut.tick,
            tick_times={str(t): ms for t, ms in cut.tick_times.items()},
            tables=infos(cut.tables, cut.totals),
            digest={name: str(value) for name, value in cut.digest.items()},
            metrics=dict(cut.metrics),
            files=files,
            folder=folder,
            sha256="",
        )
        publish(folder / NEW_MANIFEST, folder / MANIFEST, manifest.to_json().encode())
        return read_manifest(folder)
