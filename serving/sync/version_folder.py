"""One version folder of a model: sync writes its token and its journal, the model server loads it."""

from __future__ import annotations

from pathlib import Path

from common import disk
from delta_log.changes import Changes
from serving import journal
from serving.journal import Journal

FOLD_BYTES = 1 << 20
"""A journal is folded when its later records have outgrown the first one by this. Folding rewrites the file."""


class VersionFolder:
    """A version: `base_seq` is the delta that its SavedModel holds, `journal_seq` the newest one of its journal.

    `dims` is table -> row length, `shapes` dense weight -> shape, as `journal.decode` needs them.
    """

    def __init__(self, path: Path, dims: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        self.path, self.number = path, int(path.name)
        self.base_seq = self.number % journal.VERSIONS_A_GENERATION
        self._journal, self._dims, self._shapes = path / "assets" / "journal.bin", dims, shapes
        content = self._read()
        self.lineage, self.journal_seq, self._dense = content.lineage, content.to, content.dense

    def _read(self) -> Journal:
        """Reads the journal, and notes the bytes of its first record and of all whole ones."""
        data = self._journal.read_bytes()
        sizes = [words.nbytes for words in journal.records(data)]
        self._first_bytes, self._bytes = sizes[0], sum(sizes)
        return journal.decode(data, self._dims, self._shapes)

    def write_token(self, token: str) -> None:
        """Writes the secret that the graph compares with a call's token."""
        path = self.path / "assets" / "token"
        if path.read_bytes() != token.encode():
            disk.replace(path, token.encode(), 0o600)

    def append(self, delta: Changes) -> None:
        """Adds the next delta to the journal. After an OSError it can be called again."""
        m = delta.manifest
        if m.seq != self.journal_seq + 1:
            raise ValueError(f"{self.path}: the journal ends at {self.journal_seq}, {m.name} does not follow")
        tables = {name: delta.tables[name] for name in self._dims}
        dense = delta.dense or self._dense  # as they are served
        changes = Journal(m.lineage, m.seq - 1, m.seq, m.learned_until_ms, tables, dense, m.dense_seq)
        record = journal.encode(changes)
        disk.append(self._journal, record, self._bytes)
        self._dense = dense
        self._bytes, self.journal_seq = self._bytes + len(record), m.seq
        if self._bytes > 2 * self._first_bytes + FOLD_BYTES:
            whole = journal.encode(self._read())
            disk.replace(self._journal, whole)
            self._first_bytes = self._bytes = len(whole)


def version_folders(served: Path) -> list[Path]:
    """The folders of versions in `served`, oldest first."""
    return sorted((p for p in served.glob("*/") if p.name.isdecimal()), key=lambda p: int(p.name))
