"""The version folders of one model in a replica: their tokens, their journals, and which of them are removed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import Counter

from common import process
from delta_log.changes import Changes, read_changes
from delta_log.files import read_dense
from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from serving.journal import VERSIONS_A_GENERATION
from serving.sync.faults import Faults
from serving.sync.version_folder import VersionFolder, version_folders

logger = process.logger("sync")

KEPT_VERSIONS = 2


class Versions:
    """The versions in the folder `served` that belong to `log`: version number -> its folder.

    In its methods `loaded` is version number -> the newest seq that the replica serves of it.
    """

    def __init__(self, log: Log, served: Path, token: str, journals: Counter, faults: Faults) -> None:
        self.log, self.served = log, served
        self.folders: dict[int, VersionFolder] = {}
        self._token, self._journals, self._faults = token, journals, faults
        self._newest_read: dict[str, Changes] = {}

    def of(self, lineage: str) -> list[VersionFolder]:
        return [version for version in self.folders.values() if version.lineage == lineage]

    def adopt(self, serving: str) -> None:
        """Adds the new folders of versions that belong to the log, and writes the token, which may have changed.

        Removes those of generations before `serving`, the served lineage, that the log does not keep any more.
        """
        errors = []
        for path in version_folders(self.served):
            if int(path.name) in self.folders:
                continue
            generation = int(path.name) // VERSIONS_A_GENERATION
            lineages = [name for name in self.log.lineages() if int(name[:6]) == generation]
            if not lineages and generation < int(serving[:6]) and self.of(serving):
                shutil.rmtree(path, ignore_errors=True)
                logger.info("removed version %s, of a lineage the log does not keep", path.name)
                continue
            try:
                version = self._open(path, lineages[0]) if lineages else None
            except (OSError, ValueError) as e:
                errors.append(f"{path}: {e}")
                continue
            if version is None or version.lineage not in lineages:
                errors.append(f"{path}: its lineage is not in the log")
                continue
            version.write_token(self._token)
            self.folders[version.number] = version
        self._faults.report("foreign version", "; ".join(errors))

    def _open(self, path: Path, lineage: str) -> VersionFolder:
        """Opens a version folder. All bases of `lineage` have the same tables and weights."""
        base = self.log.manifest(lineage, "base", self.log.seqs(lineage, "base")[-1])
        shapes = {name: weight.value.shape for name, weight in read_dense(base).items()}
        return VersionFolder(path, {name: t.dim for name, t in base.tables.items()}, shapes)

    def prepare(self, exported: Path, lineage: str) -> None:
        """Writes token and journal of a new version, up to the log's head, before the model server can see it."""
        version = self._open(exported, lineage)
        version.write_token(self._token)
        self._keep_journal(version, now=True)

    def keep_journals(self, *, now: bool = False) -> None:
        """Adds the log's new deltas to each journal and writes those that are due (`now`: all)."""
        errors = [self._keep_journal(version, now=now) for version in self.folders.values()]
        self._faults.report("journal", "; ".join(filter(None, errors)))

    def _keep_journal(self, version: VersionFolder, *, now: bool) -> str:
        """Returns the error, "" without one."""
        error = ""
        try:
            for manifest in self.log.deltas_after(version.lineage, version.journal_seq):
                version.fold(self.read(manifest))
        except LogError as e:
            error = str(e)
        except LookupError:
            pass  # The log does not keep the next delta any more: a newer version will replace this one.
        if version.write_journal(now=now):
            self._journals.inc()
        return error

    def read(self, manifest: Manifest) -> Changes:
        """Reads a delta; LogBroken if a file differs from its manifest. Keeps the newest one for the other versions."""
        key = str(manifest.folder) + manifest.sha256
        if key not in self._newest_read:
            self._newest_read = {key: read_changes(manifest)}
        return self._newest_read[key]

    def out_of_reach(self, lineage: str, loaded: Mapping[int, int]) -> bool:
        """True if the log has been pruned past the journal and the served seq of each version of `lineage`."""
        oldest = self.log.seqs(lineage, "base")[0]
        return all(max(v.journal_seq, loaded.get(v.number, 0)) < oldest for v in self.of(lineage))

    def remove_outdated(self, serving: str, refused: tuple[int, ...], loaded: Mapping[int, int]) -> None:
        """Removes old versions that are not loaded any more, and versions that must not be served.

        The model server takes the highest number. So a version of a refused base, or of a younger lineage than the
        served one, is removed once there is another to load; the server loads that one before it unloads this one.
        """
        newest = max(loaded, default=0)
        outdated = [v for v in sorted(self.folders)[:-KEPT_VERSIONS] if v < newest and v not in loaded]
        accepted = [v.number for v in self.of(serving) if v.base_seq not in refused]
        if accepted and not self.out_of_reach(serving, loaded):
            outdated += [v for v in self.folders if v > max(accepted)]
        for number in dict.fromkeys(outdated):
            shutil.rmtree(self.folders.pop(number).path, ignore_errors=True)
            logger.info("removed version %d", number)
