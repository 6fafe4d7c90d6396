"""The delta log's folder as its readers see it: lineages, chains of manifests, the pointer to the served lineage.

    log = Log(Path("var/local/log/ranker"))
    base, deltas = log.chain(log.serving())     # every manifest and file checked
    for new in log.follow(deltas[-1] if deltas else base):
        rows = read_rows(new)                   # table -> (keys int64[n], rows float32[n, dim])

NumPy, pyarrow and the standard library only: serving reads the log without TensorFlow. The format is docs/delta.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from common.disk import flush_folder, locked, replace
from delta_log.manifest import (
    FOLDER,
    LINEAGE,
    MANIFEST,
    LogBroken,
    LogError,
    Manifest,
    check_files,
    folder_name,
    read_manifest,
)

SERVING = "SERVING"
"""The file that names the served lineage."""


class Log:
    """A delta log's folder. Readers take no lock: a base or delta exists as soon as its manifest does."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def lineages(self) -> list[str]:
        """Lists the lineages that have a manifest, the oldest generation first."""
        if not self.path.is_dir():
            return []
        names = sorted(p.name for p in self.path.iterdir() if LINEAGE.fullmatch(p.name))
        return [n for n in names if next(self.folders(n), None) is not None]

    def new_lineage(self) -> str:
        """Makes the empty folder of the next generation and returns its name. Two callers get two generations."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / "LOCK"):
            taken = [p.name for p in self.path.iterdir() if LINEAGE.fullmatch(p.name)]
            generation = max((int(n[:6]) for n in taken), default=0) + 1
            name = f"{generation:06d}-{secrets.token_hex(4)}"
            (self.path / name).mkdir()
        flush_folder(self.path)
        return name

    def folders(self, lineage: str) -> Iterator[tuple[str, int, Path]]:
        """Yields (kind, seq, folder) of each base and delta of a lineage, in any order."""
        if not LINEAGE.fullmatch(lineage):
            raise ValueError(f"lineage is {lineage!r}, allowed is <6 digits>-<8 hex digits>")
        try:
            entries = list((self.path / lineage).iterdir())
        except FileNotFoundError:
            return
        for path in entries:
            match = FOLDER.fullmatch(path.name)
            if match is None:
                raise LogBroken(f"{path}: a foreign file, expected base-<9 digits> or delta-<9 digits>")
            if (path / MANIFEST).exists():
                yield match[1], int(match[2]), path

    def seqs(self, lineage: str, kind: str) -> list[int]:
        """Lists the seqs of the bases or deltas that exist, ascending."""
        return sorted(seq for k, seq, _ in self.folders(lineage) if k == kind)

    def manifest(self, lineage: str, kind: str, seq: int) -> Manifest:
        """Reads one manifest. Raises LogError if it does not exist."""
        folder = self.path / lineage / folder_name(kind, seq)
        try:
            return read_manifest(folder)
        except FileNotFoundError as e:
            raise LogError(f"{folder}: no {kind} {seq} in lineage {lineage}") from e

    def newest_base(self, lineage: str) -> Manifest:
        """Reads the manifest of the newest base. Raises LogError if the lineage has none."""
        bases = self.seqs(lineage, "base")
        if not bases:
            raise LogError(f"{self.path / lineage}: no base, so no chain")
        return self.manifest(lineage, "base", bases[-1])

    def manifests(self, lineage: str) -> list[Manifest]:
        """Reads all manifests of a lineage by seq, a delta before the base of its seq. Checks no files, no links."""
        folders = sorted((seq, kind != "delta", folder) for kind, seq, folder in self.folders(lineage))
        return [read_manifest(folder) for _, _, folder in folders]

    def chain(self, lineage: str, base_seq: int | None = None) -> tuple[Manifest, list[Manifest]]:
        """Reads and verifies the newest chain, or the one from base `base_seq`: (base, its deltas in order)."""
        base = self.newest_base(lineage) if base_seq is None else self.manifest(lineage, "base", base_seq)
        deltas = self.follow(base)
        for manifest in (base, *deltas):
            check_files(manifest)
        return base, deltas

    def follow(self, last: Manifest) -> list[Manifest]:
        """Reads the manifests of the deltas after `last`. Raises LogBroken at a gap or a wrong link.

        The files of a delta are checked when they are read.
        """
        deltas = []
        for seq in (s for s in self.seqs(last.lineage, "delta") if s > last.seq):
            if seq != last.seq + 1:
                missing = self.path / last.lineage / folder_name("delta", last.seq + 1)
                raise LogBroken(f"{missing}: missing, but {folder_name('delta', seq)} exists: a gap")
            following = self.manifest(last.lineage, "delta", seq)
            if following.previous != last.link:
                raise LogBroken(
                    f"{following.folder / MANIFEST}: previous is {following.previous}, expected {last.link}"
                    f" ({last.name}): not of this chain"
                )
            if following.declaration != last.declaration:
                raise LogBroken(f"{following.folder / MANIFEST}: another declaration than that of {last.name}")
            if following.model.name != last.model.name:
                raise LogBroken(f"{following.folder / MANIFEST}: model is {following.model}, before it {last.model}")
            deltas.append(following)
            last = following
        return deltas

    def deltas_after(self, lineage: str, seq: int) -> list[Manifest]:
        """Reads the manifests of the deltas after `seq`. Raises LogBroken if they are no chain.

        Raises LookupError if the log keeps neither delta nor base `seq`: pruning removes deltas that no base needs.
        """
        for kind in ("delta", "base"):
            if (self.path / lineage / folder_name(kind, seq) / MANIFEST).exists():
                return self.follow(self.manifest(lineage, kind, seq))
        raise LookupError(f"lineage {lineage}: the log keeps neither delta nor base {seq}")

    def serving(self) -> str | None:
        """Reads the name of the served lineage; None before the first."""
        try:
            name = (self.path / SERVING).read_text().strip()
        except FileNotFoundError:
            return None
        if not LINEAGE.fullmatch(name):
            raise LogBroken(f"{self.path / SERVING}: holds {name!r}, expected the name of a lineage")
        return name

    def serve(self, lineage: str) -> None:
        """Moves the serving pointer to a lineage that has a base, by rename."""
        if not self.seqs(lineage, "base"):
            raise LogError(f"{self.path / lineage}: has no base, so it cannot be served")
        replace(self.path / SERVING, lineage.encode() + b"\n")
