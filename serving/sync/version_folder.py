"""The versions in a replica's folder: made by a child process, with their token and their journal kept by sync."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from delta_log.changes import Changes, fold, no_changes
from delta_log.files import Float32s
from delta_log.log import Log
from delta_log.manifest import Manifest
from serving import journal
from serving.journal import Journal

log = logging.getLogger("serving.sync.sync")

JOURNAL_EVERY_S = 60.0
"""A restarted replica comes up at most this much behind; written more often it would only wear the disk."""


class Installed:
    """One version folder: `base_seq` is where its SavedModel stands, its journal goes on from there."""

    def __init__(self, path: Path, dims: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        self.path, self.version = path, int(path.name)
        self.base_seq = self.version % journal.VERSIONS_A_GENERATION
        kept = journal.decode((path / "assets" / "journal.bin").read_bytes(), dims, shapes)
        self.lineage, self.journal_seq = kept.lineage, kept.to
        self._learned_until_ms, self._dense = kept.learned_until_ms, kept.dense
        self._tables, self._pending = kept.tables, {name: no_changes(dim) for name, dim in dims.items()}
        self._dims, self._written_seq, self._written_at = dims, kept.to, float("-inf")

    def write_token(self, token: str) -> None:
        journal.replace(self.path / "assets" / "token", token.encode(), 0o600)

    def fold(self, change: Changes) -> None:
        """Take the next delta into the journal; in memory until it is due."""
        m = change.manifest
        if m.seq != self.journal_seq + 1:
            raise ValueError(f"{self.path}: the journal ends at {self.journal_seq}, {m.name} does not follow")
        self._pending = {n: fold(self._pending[n], new) for n, new in change.tables.items()}
        self.journal_seq, self._learned_until_ms, self._dense = m.seq, m.learned_until_ms, change.dense

    def write_journal(self, *, now: bool = False) -> bool:
        """Write it aside and rename it, if something is new and it is due; whether it was written."""
        due = now or time.monotonic() - self._written_at >= JOURNAL_EVERY_S
        if not due or self._written_seq == self.journal_seq:
            return False
        self._tables = {n: fold(t, self._pending[n]) for n, t in self._tables.items()}
        self._pending = {name: no_changes(dim) for name, dim in self._dims.items()}
        whole = Journal(
            self.lineage, self.base_seq, self.journal_seq, self._learned_until_ms, self._tables, self._dense
        )
        journal.replace(self.path / "assets" / "journal.bin", journal.encode(whole))
        self._written_seq, self._written_at = self.journal_seq, time.monotonic()
        return True


class Installation:
    """The child process that exports one base, beside the served folder; it is renamed into it when it is complete."""

    def __init__(self, source: str, delta_log: Path, base: Manifest, models: Path, model: str) -> None:
        self.base, self._models = base, models
        self._aside = models / ".install"
        shutil.rmtree(self._aside, ignore_errors=True)  # of one that was killed
        self._aside.mkdir(parents=True)
        environment = {k: v for k, v in os.environ.items() if k != "MINUTEHAND_WRITE_TOKEN"}
        command = [sys.executable, "-m", "serving.export", "--source", source, "--log", str(delta_log)]
        command += ["--lineage", base.lineage, "--seq", str(base.seq), "--to", str(self._aside), "--model", model]
        self._child = subprocess.Popen(command, env=environment)
        log.info("exporting %s of %s", base.name, base.lineage)

    def done(self, prepare: Callable[[Path], None]) -> bool:
        """Whether it is installed. `prepare` is called with the folder before anybody else can see it."""
        code = self._child.poll()
        if code is None:
            return False
        if code != 0:
            raise RuntimeError(f"serving.export of {self.base.name} of {self.base.lineage} ended with {code}")
        made = self._aside / str(journal.version_of(self.base.lineage, self.base.seq))
        prepare(made)
        final = self._models / "served" / made.name
        final.parent.mkdir(exist_ok=True)
        os.rename(made, final)
        log.info("installed %s", final)
        return True

    def end(self) -> None:
        if self._child.poll() is None:
            self._child.terminate()
            self._child.wait()


def found(served: Path) -> list[Path]:
    """Version folders, oldest first."""
    return sorted((p for p in served.glob("*/") if p.name.isdecimal()), key=lambda p: int(p.name))


def sizes(manifest: Manifest, dense: dict[str, Float32s]) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """What a journal's decoder needs to know: table -> row length, dense weight -> shape."""
    return {n: t.dim for n, t in manifest.tables.items()}, {n: v.shape for n, v in dense.items()}


def next_manifests(delta_log: Log, lineage: str, seq: int) -> list[Manifest]:
    """The deltas after `seq`, links checked; LogBroken where they are not a chain, LookupError where it is gone.

    What stands at `seq` is looked up as a delta, then as a base: pruning takes deltas that no kept base needs.
    """
    for kind in ("delta", "base"):
        if (delta_log.path / lineage / f"{kind}-{seq:09d}" / "manifest.json").exists():
            return delta_log.follow(delta_log.manifest(lineage, kind, seq))
    raise LookupError(f"lineage {lineage}: neither delta nor base {seq} is kept")
