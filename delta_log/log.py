"""The delta log's folder as its readers see it: lineages, the chain of manifests, the pointer to what is served.

    log = Log(Path("var/local/log/ranker"))
    base, deltas = log.chain(log.serving())     # every manifest and file checked
    for new in log.follow(deltas[-1] if deltas else base):
        rows = read_rows(new)                   # table -> (keys int64[n], rows float32[n, dim])

NumPy, pyarrow and the standard library only: serving reads the log without TensorFlow. The format is docs/delta.md.
"""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator
from pathlib import Path

from common.disk import flush_folder, replace
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


class Log:
    """A delta log's folder. It is read without locks: nothing exists until its manifest does."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def lineages(self) -> list[str]:
        """Lineages that have a manifest, oldest generation first."""
        if not self.path.is_dir():
            return []
        names = sorted(p.name for p in self.path.iterdir() if LINEAGE.fullmatch(p.name))
        return [n for n in names if next(self.folders(n), None) is not None]

    def new_lineage(self) -> str:
        """The next generation: its name and its empty folder. Two that ask at once get different generations."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "LOCK", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            taken = [p.name for p in self.path.iterdir() if LINEAGE.fullmatch(p.name)]
            generation = max((int(n[:6]) for n in taken), default=0) + 1
            name = f"{generation:06d}-{secrets.token_hex(4)}"
            (self.path / name).mkdir()
        flush_folder(self.path)
        return name

    def folders(self, lineage: str) -> Iterator[tuple[str, int, Path]]:
        """(kind, seq, folder) of what exists in a lineage, in no order. A folder without manifest does not exist."""
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
        """Ascending seqs of the bases or deltas that exist."""
        return sorted(seq for k, seq, _ in self.folders(lineage) if k == kind)

    def manifest(self, lineage: str, kind: str, seq: int) -> Manifest:
        """One manifest; LogError if there is none."""
        folder = self.path / lineage / folder_name(kind, seq)
        try:
            return read_manifest(folder)
        except FileNotFoundError as e:
            raise LogError(f"{folder}: no {kind} {seq} in lineage {lineage}") from e

    def manifests(self, lineage: str) -> list[Manifest]:
        """All of a lineage in order of seq, a delta before the base of its seq; files and links unchecked."""
        found = sorted((seq, kind != "delta", folder) for kind, seq, folder in self.folders(lineage))
        return [read_manifest(folder) for _, _, folder in found]

    def chain(self, lineage: str, base_seq: int | None = None) -> tuple[Manifest, list[Manifest]]:
        """The newest whole chain, or the one from a given base: (base, its deltas in order), all of it verified."""
        bases = self.seqs(lineage, "base")
        if not bases:
            raise LogError(f"{self.path / lineage}: no base, so no chain")
        base = self.manifest(lineage, "base", bases[-1] if base_seq is None else base_seq)
        deltas = self.follow(base)
        for manifest in (base, *deltas):
            check_files(manifest)
        return base, deltas

    def follow(self, last: Manifest) -> list[Manifest]:
        """The deltas after `last`, in order; LogBroken at a gap or a wrong link. Their files are checked when read."""
        found = []
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
            found.append(following)
            last = following
        return found

    def deltas_after(self, lineage: str, seq: int) -> list[Manifest]:
        """The deltas after `seq`, links checked: LogBroken if they are no chain, LookupError if `seq` was pruned.

        `seq` is looked up as a delta, then as a base: pruning removes deltas that no kept base needs.
        """
        for kind in ("delta", "base"):
            if (self.path / lineage / folder_name(kind, seq) / MANIFEST).exists():
                return self.follow(self.manifest(lineage, kind, seq))
        raise LookupError(f"lineage {lineage}: the log keeps neither delta nor base {seq}")

    def serving(self) -> str | None:
        """The lineage that is served, None before the first."""
        try:
            name = (self.path / "SERVING").read_text().strip()
        except FileNotFoundError:
            return None
        if not LINEAGE.fullmatch(name):
            raise LogBroken(f"{self.path / 'SERVING'}: holds {name!r}, expected the name of a lineage")
        return name

    def serve(self, lineage: str) -> None:
        """Move the serving pointer, by rename; the lineage must have a base."""
        if not self.seqs(lineage, "base"):
            raise LogError(f"{self.path / lineage}: has no base, so it cannot be served")
        replace(self.path / "SERVING", lineage.encode() + b"\n")
