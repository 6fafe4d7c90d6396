"""A replica without a model server: it keeps the seq of each version in memory, and starts again from its journal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delta_log.changes import no_changes
from delta_log.files import read_served
from delta_log.manifest import Manifest
from serving import journal
from serving.replica import Down, RefusedCall, Replica, Status
from serving.sync.version_folder import version_folders
from tests.support.lineage import HIDDEN_SHAPES, ROW_DIM, TOKEN, D

DIMS = dict.fromkeys(D.tables, ROW_DIM)


def install(base: Manifest, folder: Path) -> Path:
    """Writes what sync reads of an exported version: its journal and its token."""
    path = folder / str(journal.version_of(base.lineage, base.seq))
    (path / "assets").mkdir(parents=True)
    nothing = {t: no_changes(dim) for t, dim in DIMS.items()}
    times = base.seq, base.seq, base.learned_until_ms
    content = journal.Journal(base.lineage, *times, nothing, read_served(base), base.dense_seq)
    (path / "assets" / "journal.bin").write_bytes(journal.encode(content))
    (path / "assets" / "token").touch()
    return path


class FakeReplica(Replica):
    """`seqs` is version -> the seq it serves, `newest` the greatest one it ever served.

    `calls_left`: it dies at that call (None: never). `errors`: versions that it cannot load.
    """

    def __init__(self, served: Path) -> None:
        self.address, self.model, self.served = "fake:1", "ranker", served
        self.seqs: dict[int, int] = {}
        self.newest = 0
        self.lineages: dict[int, str] = {}
        self.errors: dict[int, str] = {}
        self.calls_left: int | None = None
        self.up = False

    def start(self) -> None:
        """Loads the newest version as the model server does: its base, then its journal."""
        self.up, self.calls_left = True, None
        path = version_folders(self.served)[-1]
        if int(path.name) not in self.errors:
            content = journal.decode((path / "assets" / "journal.bin").read_bytes(), DIMS, HIDDEN_SHAPES)
            self.seqs = {int(path.name): content.to}
            self.lineages[int(path.name)] = content.lineage

    def close(self) -> None:
        pass

    def versions(self) -> tuple[list[int], dict[int, str]]:
        self._answer()
        return list(self.seqs), self.errors

    def status(self, version: int) -> Status:
        self._answer()
        return Status(self.lineages[version], self.seqs[version], 0, {}, {})

    def call(self, version: int, signature: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        self._answer()
        token = (self.served / str(version) / "assets" / "token").read_text()
        if arrays["token"] != token or token != TOKEN or arrays["seq"] != self.seqs[version] + 1:
            raise RefusedCall("refused")
        if signature == "apply_delta" and arrays["chunk"] + 1 == arrays["chunks"]:
            self.seqs[version] += 1
            self.newest = max(self.newest, self.seqs[version])
        return {}

    def _answer(self) -> None:
        if self.calls_left is not None:
            self.calls_left -= 1
            self.up = self.calls_left > 0
        if not self.up:
            self.seqs = {}
            raise Down("fake:1: UNAVAILABLE")
