"""The version folders of one model in a replica: their tokens, their journals, and which of them are removed.

A version is damaged if sync cannot read it, or if the model server reports FAILED_LOOKS times in a row that it cannot
load it. A damaged version counts as not installed. It is removed once the served lineage has another one; if that other
one has the same number, it takes its place.
"""

from __future__ import annotations

import shutil
from collections import Counter as Counts
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import Counter

from common import disk, process
from delta_log.changes import Changes, read_changes
from delta_log.files import read_dense
from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from serving.journal import VERSIONS_A_GENERATION, JournalError
from serving.sync.faults import Faults
from serving.sync.version_folder import VersionFolder, version_folders

logger = process.logger("sync")

KEPT_VERSIONS = 2
FAILED_LOOKS = 5
"""The looks, one a second, after which a version that does not load counts as damaged. Each time it is ten times more:
an export that no server can load is not written again and again."""


class Versions:
    """The versions in the folder `served` that belong to `log`.

    `folders` is version number -> its folder, of those that can be read; `damaged` version number -> the reason.

    In its methods `loaded` is version number -> the newest seq that the replica serves of it.
    """

    def __init__(self, log: Log, served: Path, token: str, journals: Counter, faults: Faults) -> None:
        self.log, self.served = log, served
        self.folders: dict[int, VersionFolder] = {}
        self.damaged: dict[int, str] = {}
        self._token, self._journals, self._faults = token, journals, faults
        self._newest_read: dict[str, Changes] = {}
        self._failed, self._allowed = Counts[int](), dict[int, int]()

    def of(self, lineage: str) -> list[VersionFolder]:
        """The versions of a lineage that are not damaged."""
        return [v for v in self.folders.values() if v.lineage == lineage and v.number not in self.damaged]

    def adopt(self, serving: str) -> None:
        """Adds the new folders of versions that belong to the log, and writes the token, which may have changed.

        Removes those of generations before `serving`, the served lineage, that the log does not keep any more.
        """
        errors = []
        for path in version_folders(self.served):
            number, generation = int(path.name), int(path.name) // VERSIONS_A_GENERATION
            if number in self.folders or number in self.damaged:
                continue
            lineages = [name for name in self.log.lineages() if int(name[:6]) == generation]
            if not lineages and generation < int(serving[:6]) and self.of(serving):
                shutil.rmtree(path, ignore_errors=True)
                logger.info("removed version %s, of a lineage the log does not keep", path.name)
                continue
            try:
                version = self._open(path, lineages[0]) if lineages else None
                if version is None or version.lineage not in lineages:
                    raise OSError("its lineage is not in the log")
                version.write_token(self._token)
            except (JournalError, FileNotFoundError) as e:
                self.damaged[number] = f"{path}: {e}"
            except OSError as e:
                errors.append(f"{path}: {e}")
            else:
                self.folders[number] = version
        self._faults.report("foreign version", "; ".join(errors))
        self._faults.report("damaged version", "; ".join(self.damaged.values()))

    def _open(self, path: Path, lineage: str) -> VersionFolder:
        """Opens a version folder. All bases of `lineage` have the same tables and weights."""
        base = self.log.manifest(lineage, "base", self.log.seqs(lineage, "base")[-1])
        shapes = {name: weight.value.shape for name, weight in read_dense(base).items()}
        return VersionFolder(path, {name: t.dim for name, t in base.tables.items()}, shapes)

    def prepare(self, exported: Path, lineage: str) -> None:
        """Writes token and journal of a new version, up to the log's head, before the model server can see it."""
        version = self._open(exported, lineage)
        version.write_token(self._token)
        self._keep_journal(version)

    def install(self, exported: Path) -> Path:
        """Moves a prepared version to its name, in place of a damaged one. Returns the new folder."""
        final = self.served / exported.name
        final.parent.mkdir(exist_ok=True)
        if int(exported.name) in self.damaged:
            self._forget(int(exported.name))
            aside = exported.with_name(f"{exported.name}.damaged")
            final.rename(aside)
            disk.move(exported, final)
            shutil.rmtree(aside, ignore_errors=True)  # now: it takes a while, and the model server looks at `final`
        else:
            disk.move(exported, final)
        return final

    def failed(self, errors: Mapping[int, str]) -> None:
        """Takes note of the versions that the model server cannot load: version number -> its error."""
        installed = self.folders.keys() - self.damaged
        self._failed = Counts({number: self._failed[number] + 1 for number in installed & errors.keys()})
        for number, looks in self._failed.items():
            allowed = self._allowed.get(number, FAILED_LOOKS)
            if looks >= allowed:
                self._allowed[number] = 10 * allowed
                self.damaged[number] = f"version {number}: {errors[number]}"

    def keep_journals(self) -> None:
        """Adds the log's new deltas to each journal."""
        errors = []
        for version in self.folders.values():
            try:
                if version.number not in self.damaged:
                    self._keep_journal(version)
            except JournalError as e:
                self.damaged[version.number] = f"{version.path}: {e}"
            except (LogError, OSError) as e:
                errors.append(str(e))
        self._faults.report("journal", "; ".join(errors))

    def _keep_journal(self, version: VersionFolder) -> None:
        try:
            manifests = self.log.deltas_after(version.lineage, version.journal_seq)
        except LookupError:
            return  # The log does not keep the next delta any more: a newer version will replace this one.
        for manifest in manifests:
            version.append(self.read(manifest))
            self._journals.inc()

    def read(self, manifest: Manifest) -> Changes:
        """Reads a delta; LogBroken if a file differs from its manifest. Keeps the newest one for the other versions."""
        key = str(manifest.folder) + manifest.sha256
        if key not in self._newest_read:
            self._newest_read = {key: read_changes(manifest)}
        return self._newest_read[key]

    def out_of_reach(self, lineage: str, loaded: Mapping[int, int]) -> bool:
        """True if each version of `lineage` needs a delta that the log does not keep any more.

        A version needs the delta after its journal and, if it is loaded, the one after its served seq.
        """
        logged = {*self.log.seqs(lineage, "base"), *self.log.seqs(lineage, "delta")}
        return not any({v.journal_seq, loaded.get(v.number, v.journal_seq)} <= logged for v in self.of(lineage))

    def remove_outdated(self, serving: str, refused: tuple[int, ...], loaded: Mapping[int, int]) -> None:
        """Removes old versions that are not loaded any more, and versions that must not be served.

        The model server takes the highest number. So a version of a refused base, or of a younger lineage than the
        served one, is removed once there is another to load; the server loads that one before it unloads this one.
        """
        newest = max(loaded, default=0)
        whole = sorted(self.folders.keys() - self.damaged)
        outdated = [v for v in whole[:-KEPT_VERSIONS] if v < newest and v not in loaded]
        accepted = [v.number for v in self.of(serving) if v.base_seq not in refused]
        if accepted and not self.out_of_reach(serving, loaded):
            outdated += [v for v in self.folders if v > max(accepted)]
            outdated += self.damaged
        for number in dict.fromkeys(outdated):
            shutil.rmtree(self.served / str(number), ignore_errors=True)
            self._forget(number)
            logger.info("removed version %d", number)

    def _forget(self, number: int) -> None:
        self.folders.pop(number, None)
        self.damaged.pop(number, None)
