"""The one writer of a lineage: it commits in the order of docs/delta.md, and removes old bases, deltas and lineages.

with Writer(log, lineage) as writer:
    manifest = writer.delta(Cut(...))      # returns when the delta exists for good
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from common import disk, process
from delta_log.files import Float32s, TableRows, Weight, encode, infos
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

logger = process.logger("delta_log")


@dataclass(frozen=True)
class Cut:
    """A copy of the state of training between two steps, or of the part that changed. Training may continue.

    `dense` are the dense weights of training; a delta in which they did not change has none. `serves_dense` tells that
    they are served from here on. `served` are those of a base that are served, if they are not the same.

    `totals` is the number of rows of each whole table. `learned` is (count, sum) since the lineage began. `written_ms`
    is kind -> bin of 10 ms -> count.
    """

    source: str
    declaration: str
    model: ModelInfo
    tables: Mapping[str, TableRows]
    dense: Mapping[str, Weight]
    totals: Mapping[str, int]
    tick: int
    served: Mapping[str, Float32s] = field(default_factory=dict)
    serves_dense: bool = True
    tick_times: Mapping[int, int] = field(default_factory=dict)
    positions: Mapping[str, Any] = field(default_factory=dict)
    learned: tuple[int, int] = (0, 0)
    learned_until_ms: int = -1
    written_ms: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    digest: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def hold(log: Log, lineage: str) -> IO[str]:
    """Takes the lock of a lineage, for as long as the file is open. Raises LogBusy if another writer holds it."""
    return disk.hold(log.path / f"{lineage}.lock", "a lineage has one writer")


def prune_lineages(log: Log, keep: int) -> list[str]:
    """Removes all lineages but the `keep` newest, the served one and those with a writer. Returns the removed names."""
    if keep < 1:
        raise ValueError(f"keep_lineages is {keep}, allowed is 1 or more")
    removed = []
    for name in log.lineages()[:-keep]:
        if name == log.serving():
            continue
        try:
            lock = hold(log, name)
        except LogBusy:
            continue
        with lock:
            # First it gets a name that no lineage has. So it disappears at once, even if this process is killed.
            (log.path / name).rename(log.path / f".gone-{name}")
            (log.path / f"{name}.lock").unlink()
            (log.path / "candidates" / f"{name}.json").unlink(missing_ok=True)
        removed.append(name)
    for folder in log.path.glob(".gone-*"):
        shutil.rmtree(folder)
    return removed


class Writer:
    """Holds the lock of one lineage. `head` is its newest delta, or else its base; None in a new lineage."""

    def __init__(self, log: Log, lineage: str) -> None:
        self.log, self.lineage = log, lineage
        self._lock = hold(log, lineage)
        self._unflushed: set[Path] = set()  # folders whose manifest exists, but may not outlive a crash of the machine
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
        """Releases the lock."""
        self._lock.close()

    def first_base(self, cut: Cut) -> Manifest:
        """Writes base-0, with which a lineage begins."""
        if self.head is not None:
            raise LogError(f"{self.log.path / self.lineage}: has begun already, it is at {self.head.name}")
        self.head = self._write("base", 0, "", 0, cut)
        return self.head

    def delta(self, cut: Cut) -> Manifest:
        """Writes the next delta. If that fails, nothing is committed, and the next attempt has the same seq."""
        if self.head is None:
            raise LogError(f"{self.log.path / self.lineage}: has no base yet, so a delta has nothing to change")
        folder = self.log.path / self.lineage / folder_name("delta", self.head.seq + 1)
        # An attempt of ours may have left it that could not see its end. The cut, which has all that it has, follows.
        if (folder / MANIFEST).exists() and (left := read_manifest(folder)).previous == self.head.link:
            self._unflushed.add(folder)
            self.head = left
        seq = self.head.seq + 1
        dense_seq = seq if cut.serves_dense and cut.dense else self.head.dense_seq
        self.head = self._write("delta", seq, self.head.link, dense_seq, cut)
        return self.head

    def base(self, seq: int, cut: Cut) -> Manifest:
        """Writes a compacted base of the state as of delta `seq`."""
        last = self.log.manifest(self.lineage, "delta", seq)
        return self._write("base", seq, last.sha256, last.dense_seq, cut)

    def prune(self, keep_bases: int) -> list[str]:
        """Removes all but the newest bases, and the deltas that they do not need. Returns the removed names.

        A manifest is removed first: then its base or delta does not exist, and the next writer removes the rest.
        """
        if keep_bases < 1:
            raise ValueError(f"keep_bases is {keep_bases}, allowed is 1 or more")
        bases = self.log.seqs(self.lineage, "base")
        old_bases = bases[:-keep_bases]
        oldest = bases[len(old_bases)] if bases else -1
        names = [folder_name("base", s) for s in old_bases]
        names += [folder_name("delta", s) for s in self.log.seqs(self.lineage, "delta") if s <= oldest]
        for name in names:
            folder = self.log.path / self.lineage / name
            os.unlink(folder / MANIFEST)
            shutil.rmtree(folder)
        return names

    def _remove_unfinished(self) -> None:
        """Removes the folders without a manifest that a killed writer of this lineage left."""
        for folder in (self.log.path / self.lineage).glob("*-*/"):
            if not (folder / MANIFEST).exists():
                shutil.rmtree(folder)

    def _write(self, kind: str, seq: int, previous: str, dense_seq: int, cut: Cut) -> Manifest:
        for unflushed in list(self._unflushed):  # deltas and bases are written by threads of their own
            disk.flush_folder(unflushed)
            self._unflushed.discard(unflushed)
        folder = self.log.path / self.lineage / folder_name(kind, seq)
        if (folder / MANIFEST).exists():
            raise LogError(f"{folder}: exists already, and nothing in the log is ever rewritten")
        if folder.exists():  # an attempt of ours that failed
            shutil.rmtree(folder)
        if not folder.parent.exists():
            os.mkdir(folder.parent)
            disk.flush_folder(self.log.path)
        os.mkdir(folder)
        files = {}
        for name, data in encode(cut.tables, cut.dense, cut.served, removed=kind == "delta").items():
            disk.flushed(folder / name, data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        disk.flush_folder(folder)
        disk.flush_folder(folder.parent)
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
            dense_seq=dense_seq,
            tables=infos(cut.tables, cut.totals),
            digest={name: str(value) for name, value in cut.digest.items()},
            metrics=dict(cut.metrics),
            files=files,
            folder=folder,
            sha256="",
        )
        data = manifest.to_json().encode()
        try:
            disk.publish(folder / NEW_MANIFEST, folder / MANIFEST, data)
        except OSError as e:
            if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != data:
                raise
            self._unflushed.add(folder)
            logger.warning("%s: is written, but not flushed: %s; flushed before the next one", folder, e)
        return replace(manifest, sha256=hashlib.sha256(data).hexdigest())
