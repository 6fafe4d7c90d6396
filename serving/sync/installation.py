"""Installs bases: decides which one a model needs, exports it in a child process, and moves it to the served folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from common import process
from delta_log.manifest import LogError, Manifest
from delta_log.publication import Publication
from serving.journal import version_of
from serving.sync.faults import Faults
from serving.sync.versions import Versions
from streaming.declaration import Declaration
from streaming.source import load

logger = process.logger("sync")

RETRY_S = 5.0
"""The pause after an export that failed."""


class Installer:
    """Installs the bases of one model. `nearly_full`: a loaded table needs a newer base, which gets more room."""

    def __init__(
        self, declaration: Declaration, source: str, versions: Versions, models: Path, model: str, faults: Faults
    ) -> None:
        self.nearly_full = False
        self._declaration, self._source, self._model = declaration, source, model
        self._versions, self._faults, self._exports = versions, faults, models / ".install"
        self._child: subprocess.Popen[bytes] | None = None
        self._base: Manifest
        self._next_try = 0.0

    def step(self, lineage: str, loaded: Mapping[int, int]) -> None:
        """Begins an export for the served lineage, or installs what an export has made."""
        if self._child is None:
            if time.monotonic() >= self._next_try and (base := self._needed(lineage, loaded)):
                self._attempt(lambda: self._export(base))
        elif (code := self._child.poll()) is not None:
            self._child = None
            self._attempt(lambda: self._install(code))

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (LogError, OSError) as e:
            self._next_try = time.monotonic() + RETRY_S
            self._faults.report("export", str(e))

    def _needed(self, lineage: str, loaded: Mapping[int, int]) -> Manifest | None:
        """The base to install: the first one of the lineage, or a newer one if there is a reason for it."""
        log, publication = self._versions.log, self.publication(lineage)
        seqs = log.seqs(lineage, "base")
        seq = max((s for s in seqs if s not in publication.refused), default=seqs[-1])
        base = log.manifest(lineage, "base", seq)
        if base.declaration != self._declaration.sha256:
            self._declaration = load(self._source).declaration  # the module may have changed since, as the trainer saw
        if base.declaration != self._declaration.sha256:
            self._faults.report("declaration", f"{base.folder}: declaration differs from that of {self._source}")
            return None
        self._faults.clear("declaration")
        newest = max((version.base_seq for version in self._versions.of(lineage)), default=-1)
        if newest < 0:
            return base
        requested = newest < publication.seq <= seq
        wanted = requested or self.nearly_full or self._versions.out_of_reach(lineage, loaded)
        return base if seq > newest and wanted else None

    def publication(self, lineage: str) -> Publication:
        """The request of `serving.publish` for this lineage; one that asks for nothing if there is none."""
        publication, error = None, ""
        try:
            publication = Publication.read(self._versions.log)
        except LogError as e:
            error = str(e)
        self._faults.report("publication", error)
        return publication if publication and publication.lineage == lineage else Publication(lineage, -1)

    def _export(self, base: Manifest) -> None:
        """Starts the child process."""
        shutil.rmtree(self._exports, ignore_errors=True)  # of a process that was killed
        self._exports.mkdir(parents=True)
        command = [sys.executable, "-m", "serving.export", "--source", self._source, "--model", self._model]
        command += ["--log", str(self._versions.log.path), "--lineage", base.lineage, "--seq", str(base.seq)]
        self._child, self._base = subprocess.Popen([*command, "--to", str(self._exports)]), base
        logger.info("exporting %s of %s", base.name, base.lineage)

    def _install(self, code: int) -> None:
        """Moves what the export has written to the served folder. `code` is the exit code of the export."""
        if code:
            raise OSError(f"serving.export of {self._base.name} of {self._base.lineage} ended with {code}")
        exported = self._exports / str(version_of(self._base.lineage, self._base.seq))
        self._versions.prepare(exported, self._base.lineage)
        logger.info("installed %s", self._versions.install(exported))
        self.nearly_full = False
        self._versions.adopt(self._base.lineage)
        self._faults.clear("export")

    def progress(self) -> str:
        """The export that runs and its processor time, which grows unless it hangs; "" without one."""
        if self._child is None:
            return ""
        used = 0.0
        with suppress(psutil.Error):  # it has just ended
            times = psutil.Process(self._child.pid).cpu_times()
            used = times.user + times.system
        return f"exporting {self._base.name} of {self._base.lineage}: {used:.1f} s of processor time"

    def end(self) -> None:
        """Ends an export that still runs."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait()
