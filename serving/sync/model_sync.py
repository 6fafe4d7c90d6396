"""Keeps one model of one replica in step with its delta log: decides which deltas each loaded version gets."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from common import process
from delta_log.log import Log
from delta_log.manifest import MANIFEST, LogError, Manifest, folder_name
from serving.replica import Down, RefusedCall, Replica
from serving.sync.confirmations import Confirmations
from serving.sync.faults import Faults
from serving.sync.installation import Installer
from serving.sync.metrics import Metrics
from serving.sync.push import push
from serving.sync.versions import Versions
from streaming.declaration import Declaration

logger = process.logger("sync")

LOOK_S = 1.0
"""The pause between two looks at SERVING, the whole log, the loaded versions and their status."""
NEARLY_FULL = 0.9
"""Of a table's capacity. From there on a newer base, with a larger table, is installed: growth stops every reader."""


class ModelSync:
    """One model of one replica: `versions` are installed, `loaded` is version number -> the newest seq it confirmed."""

    def __init__(
        self, declaration: Declaration, source: str, log: Log, models: Path, replica: Replica, token: str,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        models.mkdir(parents=True, exist_ok=True)
        self.log, self.replica, self.token, self.metrics, model = log, replica, token, metrics, replica.model
        self.confirmations = Confirmations(models / "sync.jsonl", metrics, model)
        self.faults = Faults(metrics.errors, model)
        metrics.mismatches.labels(model)  # so that it is shown as 0 before the first one, as `journals` is
        self.versions = Versions(log, models / "served", token, metrics.journals.labels(model), self.faults)
        self.installer = Installer(declaration, source, self.versions, models, model, self.faults)
        self.loaded: dict[int, int] = {}
        self.lineage: str | None = None
        self.caught_up = False
        self._looked_at = float("-inf")

    def step(self) -> None:
        """Does one round: looks at everything once a second, and applies the next deltas at each call."""
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._look()
            self._looked_at = time.monotonic()
        elif not any(self._exists(self._lineage(version), seq + 1) for version, seq in self.loaded.items()):
            return
        self._follow()

    def reason(self) -> str:
        """The reason why the replica does not count as ready; "" when it does. It changes while there is progress."""
        return "; ".join(filter(None, (self._waits_for(), self.faults.text())))

    def _waits_for(self) -> str:
        if self.lineage is None:
            return f"waiting: {self.log.path / 'SERVING'} names no lineage yet"
        if not any(self._lineage(version) == self.lineage for version in self.loaded):
            waiting = f"waiting: no version of {self.lineage} is AVAILABLE at {self.replica.address} yet"
            return self.installer.progress() or waiting
        return "" if self.caught_up else f"catching up: {self.lineage} is at {max(self.loaded.values())}"

    def close(self) -> None:
        """Ends an export."""
        self.installer.end()
        self.replica.close()

    def _lineage(self, version: int) -> str:
        return self.versions.folders[version].lineage

    def _look(self) -> None:
        """Looks at SERVING, the version folders and the replica; begins and finishes exports; keeps the journals."""
        error = ""
        try:
            self.lineage = self.log.serving()
            if self.lineage is not None:
                self.versions.adopt(self.lineage)
                self.installer.step(self.lineage, self.loaded)
        except LogError as e:
            error = str(e)
        self.faults.report("log", error)
        self._look_at_replica()
        self.versions.keep_journals()
        if self.lineage is not None and not error:
            self.versions.remove_outdated(self.lineage, self.installer.publication(self.lineage).refused, self.loaded)
            self.loaded = {version: seq for version, seq in self.loaded.items() if version in self.versions.folders}

    def _look_at_replica(self) -> None:
        """Reads which versions are loaded, and their status."""
        try:
            available, errors = self.replica.versions()
            self.versions.failed(errors)
            installed = self.versions.folders
            statuses = {version: self.replica.status(version) for version in available if version in installed}
        except (Down, RefusedCall) as e:
            return self._lost("replica", e)
        self.faults.clear("replica")
        # The server still reports the error of a version that was removed.
        self.faults.report("version", "; ".join(f"version {v}: {text}" for v, text in errors.items() if v in installed))
        for version, status in statuses.items():
            if status.seq < self.loaded.get(version, -1):
                logger.info("version %d is at %d again, it was at %d", version, status.seq, self.loaded[version])
                self.caught_up = False
            full = any(rows > NEARLY_FULL * status.capacities.get(t, rows) for t, rows in status.sizes.items())
            self.installer.nearly_full |= full and self._lineage(version) == self.lineage
            self.metrics.seq.labels(self.replica.model, status.lineage).set(status.seq)
        self.loaded = {version: status.seq for version, status in statuses.items()}

    def _lost(self, reason: str, error: Exception) -> None:
        """Reports an error of the replica. Its versions count as not loaded until it answers their status again."""
        self.loaded, self.caught_up = {}, False
        self.faults.report(reason, str(error))

    def _exists(self, lineage: str, seq: int) -> bool:
        return (self.log.path / lineage / folder_name("delta", seq) / MANIFEST).exists()

    def _follow(self) -> None:
        """Applies to each loaded version the deltas that it lacks, up to an error of the log or of the replica."""
        broken = []
        try:
            for version in sorted(self.loaded, reverse=True):  # first the one that most requests use
                try:
                    self._confirm_late(version)
                    for manifest in self.log.deltas_after(self._lineage(version), self.loaded[version]):
                        self._apply(manifest, version)
                except (LookupError, LogError) as e:
                    broken.append(str(e))
            self.faults.clear("refused")
        except RefusedCall as e:
            self._lost("refused", e)
        except Down as e:
            self._lost("replica", e)
        self.faults.report("chain", "; ".join(broken))
        self._write_confirmations()
        self._measure()

    def _measure(self) -> None:
        """Counts the deltas of the served lineage that the replica lacks, also those that a broken chain keeps back."""
        self.caught_up = False
        if self.lineage is None:
            return
        base_seq = max((version.base_seq for version in self.versions.of(self.lineage)), default=0)
        confirmed = self.confirmations.last(self.lineage, base_seq)
        served = [seq for version, seq in self.loaded.items() if self._lineage(version) == self.lineage]
        try:
            newest = max(self.log.seqs(self.lineage, "delta"), default=0)
        except LogError:  # reported as the reason why the chain is broken
            return
        behind = max(0, newest - min(served, default=confirmed))
        self.metrics.behind.labels(self.replica.model).set(behind)
        self.caught_up = bool(self.loaded) and behind == 0

    def _confirm_late(self, version: int) -> None:
        """Confirms the deltas that a version got from its journal, or that a killed sync did not confirm.

        A delta that the log cannot give any more is left out.
        """
        lineage = self._lineage(version)
        last = self.confirmations.last(lineage, self.versions.folders[version].base_seq)
        if last < self.loaded[version]:
            late = (seq for seq in self.log.seqs(lineage, "delta") if last < seq <= self.loaded[version])
            for seq in late:
                with suppress(LogError):
                    self.confirmations.confirm(self.log.manifest(lineage, "delta", seq), 0, 0.0, time.time(), None)

    def _write_confirmations(self) -> None:
        error = ""
        try:
            self.confirmations.write()
        except OSError as e:
            error = str(e)
        self.faults.report("confirmations", error)

    def _apply(self, manifest: Manifest, version: int) -> None:
        """Pushes one delta, asks for the version's status, and confirms the delta."""
        started = time.perf_counter()
        self.versions.keep_journals()  # first: a server that starts again then has every delta that was served
        chunks = push(self.versions.read(manifest), self.replica, version, self.token)
        status = self.replica.status(version)
        if (status.lineage, status.seq) != (manifest.lineage, manifest.seq):
            raise RefusedCall(f"{self.replica.address}: {manifest.name} was applied, but it is at {status.seq}")
        confirmed_s = time.time()
        self.loaded[version] = status.seq
        apply_ms = (time.perf_counter() - started) * 1000
        self.metrics.seq.labels(self.replica.model, status.lineage).set(status.seq)
        self.confirmations.confirm(manifest, chunks, apply_ms, confirmed_s, self._compare(manifest, version))
        self._write_confirmations()
        logger.info("%s is served, after %.0f ms", manifest.name, apply_ms)

    def _compare(self, manifest: Manifest, version: int) -> bool | None:
        """True if the served digest equals the manifest's; None if the manifest has none."""
        if not manifest.digest:
            return None
        served = self.replica.digest(version)
        differences = [
            f"{name}: served {served.get(name)}, trained {value}"
            for name, value in manifest.digest.items() if served.get(name) != value
        ]  # fmt: skip
        if differences:
            self.metrics.mismatches.labels(self.replica.model).inc()
            differences[0] = f"version {version} at {manifest.name}: {differences[0]}"
        self.faults.report("digest", "; ".join(differences))
        return not differences
