"""One version folder of a model: sync writes its token and its journal, the model server loads it."""

from __future__ import annotations

import time
from pathlib import Path

from common.disk import replace
from delta_log.changes import Changes, fold, no_changes
from serving import journal
from serving.journal import Journal

JOURNAL_EVERY_S = 60.0
"""A restarted replica lacks at most the deltas of this time. A shorter time would only wear the disk."""


class VersionFolder:
    """A version: `base_seq` is the delta that its SavedModel holds, `journal_seq` the newest one of its journal.

    `dims` is table -> row length, `shapes` dense weight -> shape, as `journal.decode` needs them.
    """

    def __init__(self, path: Path, dims: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        self.path, self.number = path, int(path.name)
        self.base_seq = self.number % journal.VERSIONS_A_GENERATION
        content = journal.decode((path / "assets" / "journal.bin").read_bytes(), dims, shapes)
        self.lineage, self.journal_seq = content.lineage, content.to
        self._learned_until_ms, self._dense, self._tables = content.learned_until_ms, content.dense, content.tables
        self._pending = {name: no_changes(dim) for name, dim in dims.items()}
        self._dims, self._written_seq, self._written_at = dims, content.to, float("-inf")

    def write_token(self, token: str) -> None:
        """Writes the secret that the graph compares with a call's token."""
        replace(self.path / "assets" / "token", token.encode(), 0o600)

    def fold(self, delta: Changes) -> None:
        """Adds the next delta to the journal: in memory, until the journal is due."""
        manifest = delta.manifest
        if manifest.seq != self.journal_seq + 1:
            raise ValueError(f"{self.path}: the journal ends at {self.journal_seq}, {manifest.name} does not follow")
        self._pending = {name: fold(self._pending[name], changes) for name, changes in delta.tables.items()}
        self.journal_seq, self._learned_until_ms = manifest.seq, manifest.learned_until_ms
        self._dense = delta.dense

    def write_journal(self, *, now: bool = False) -> bool:
        """Replaces the journal if it is due (`now`: at once) and lacks a delta. Returns True if it was written."""
        due = now or time.monotonic() - self._written_at >= JOURNAL_EVERY_S
        if not due or self._written_seq == self.journal_seq:
            return False
        self._tables = {name: fold(table, self._pending[name]) for name, table in self._tables.items()}
        self._pending = {name: no_changes(dim) for name, dim in self._dims.items()}
        content = Journal(
            self.lineage, self.base_seq, self.journal_seq, self._learned_until_ms, self._tables, self._dense
        )
        replace(self.path / "assets" / "journal.bin", journal.encode(content))
        self._written_seq, self._written_at = self.journal_seq, time.monotonic()
        return True


def version_folders(served: Path) -> list[Path]:
    """The folders of versions in `served`, oldest first."""
    return sorted((p for p in served.glob("*/") if p.name.isdecimal()), key=lambda p: int(p.name))
