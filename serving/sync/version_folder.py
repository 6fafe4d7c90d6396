"""The version folders of one model in a replica: exported by a child process; sync keeps their token and journal."""

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
from delta_log.manifest import Manifest
from serving import journal
from serving.journal import Journal

log = logging.getLogger("sync")

JOURNAL_EVERY_S = 60.0
"""A restarted replica comes up at most this far behind. A shorter time would only wear the disk."""


class VersionFolder:
    """One version of a model: `base_seq` is the delta that its SavedModel holds, `journal_seq` the journal's last."""

    def __init__(self, path: Path, dims: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        self.path, self.version = path, int(path.name)
        self.base_seq = self.version % journal.VERSIONS_A_GENERATION
        content = journal.decode((path / "assets" / "journal.bin").read_bytes(), dims, shapes)
        self.lineage, self.journal_seq = content.lineage, content.to
        self._learned_until_ms, self._dense, self._tables = content.learned_until_ms, content.dense, content.tables
        self._pending = {name: no_changes(dim) for name, dim in dims.items()}
        self._dims, self._written_seq, self._written_at = dims, content.to, float("-inf")

    def write_token(self, token: str) -> None:
        """Writes the secret that the graph compares with a call's token."""
        journal.replace(self.path / "assets" / "token", token.encode(), 0o600)

    def fold(self, delta: Changes) -> None:
        """Adds the next delta to the journal, in memory until the journal is due."""
        manifest = delta.manifest
        if manifest.seq != self.journal_seq + 1:
            raise ValueError(f"{self.path}: the journal ends at {self.journal_seq}, {manifest.name} does not follow")
        self._pending = {name: fold(self._pending[name], changes) for name, changes in delta.tables.items()}
        self.journal_seq, self._learned_until_ms = manifest.seq, manifest.learned_until_ms
        self._dense = delta.dense

    def write_journal(self, *, now: bool = False) -> bool:
        """Replaces the journal if it is due (`now`: at once) and has something new; True if it was written."""
        due = now or time.monotonic() - self._written_at >= JOURNAL_EVERY_S
        if not due or self._written_seq == self.journal_seq:
            return False
        self._tables = {name: fold(table, self._pending[name]) for name, table in self._tables.items()}
        self._pending = {name: no_changes(dim) for name, dim in self._dims.items()}
        content = Journal(
            self.lineage, self.base_seq, self.journal_seq, self._learned_until_ms, self._tables, self._dense
        )
        journal.replace(self.path / "assets" / "journal.bin", journal.encode(content))
        self._written_seq, self._written_at = self.journal_seq, time.monotonic()
        return True


class Installation:
    """A child process that exports one base beside the served folder. The complete version is renamed into it."""

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
        """True if the version is installed. `prepare` gets its folder before anybody else can see it."""
        code = self._child.poll()
        if code is None:
            return False
        if code != 0:
            raise RuntimeError(f"serving.export of {self.base.name} of {self.base.lineage} ended with {code}")
        exported = self._aside / str(journal.version_of(self.base.lineage, self.base.seq))
        prepare(exported)
        final = self._models / "served" / exported.name
        final.parent.mkdir(exist_ok=True)
        os.rename(exported, final)
        log.info("installed %s", final)
        return True

    def end(self) -> None:
        """Ends the child, if it still runs."""
        if self._child.poll() is None:
            self._child.terminate()
            self._child.wait()


def version_folders(served: Path) -> list[Path]:
    """The folders of versions in `served`, oldest first."""
    return sorted((p for p in served.glob("*/") if p.name.isdecimal()), key=lambda p: int(p.name))


def sizes(manifest: Manifest, dense: dict[str, Float32s]) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """What decoding a journal needs: table -> row length, dense weight -> shape."""
    return {name: t.dim for name, t in manifest.tables.items()}, {name: value.shape for name, value in dense.items()}
