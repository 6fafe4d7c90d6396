"""The delta log as its readers see it: manifests, the chain they make, the pointer to what is served (docs/delta.md).

    log = Log(Path("var/log"))
    base, deltas = log.chain(log.serving())     # every manifest and file checked
    for new in log.follow(deltas[-1] if deltas else base):
        rows = read_rows(new)                   # table -> (keys int64[n], rows float32[n, dim])

NumPy, pyarrow and the standard library only: serving reads the log without TensorFlow.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streaming.disk import flush_folder, replace

FORMAT = 2
MANIFEST = "manifest.json"
NEW_MANIFEST = "manifest.json.new"
"""A manifest before it is linked to its name; a writer killed right after the link leaves both names."""

_LINEAGE = re.compile(r"\d{6}-[0-9a-f]{8}")
_FOLDER = re.compile(r"(base|delta)-(\d{9})")


class LogError(RuntimeError):
    """Something is wrong with the delta log; the message names the file, what was found and what was expected."""


class LogBroken(LogError):
    """A gap, a repeat, a flipped bit or a foreign file: refused, never skipped."""


class LogBusy(LogError):
    """Another writer holds the lineage."""


@dataclass(frozen=True)
class TableInfo:
    """Of one table: floats and optimizer slots a row; rows and removed keys in these files; rows in the whole table.

    `admission` is the shape of the filter that says which ids get a row ("": no filter); `lines` of it are in these
    files.
    """

    dim: int
    slots: int
    rows: int
    removed: int
    total: int
    admission: str = ""
    lines: int = 0


@dataclass(frozen=True)
class Manifest:
    """One base or delta: the fields of docs/delta.md, where it lies, and the sha256 of its own bytes."""

    kind: str
    lineage: str
    seq: int
    previous: str
    created_ms: int
    source: str
    declaration: str
    positions: dict[str, Any]
    learned: dict[str, Any]
    learned_until_ms: int
    written_ms: dict[str, dict[str, int]]
    tick: int
    tick_times: dict[str, int]
    tables: dict[str, TableInfo]
    digest: dict[str, str]
    metrics: dict[str, float]
    files: dict[str, dict[str, Any]]
    folder: Path
    sha256: str

    @property
    def name(self) -> str:
        return folder_name(self.kind, self.seq)

    @property
    def link(self) -> str:
        """What the delta after this one must name as `previous`."""
        return self.previous if self.kind == "base" and self.seq > 0 else self.sha256

    @property
    def bytes(self) -> int:
        return sum(int(f["bytes"]) for f in self.files.values())

    def to_json(self) -> str:
        fields = {"format": FORMAT, **asdict(self)}
        del fields["folder"], fields["sha256"]
        return json.dumps(fields, indent=1)  # not sorted: the order of `tables` is the declaration's


_FIELDS: dict[str, type] = {
    "format": int, "kind": str, "lineage": str, "seq": int, "previous": str, "created_ms": int, "source": str,
    "declaration": str, "positions": dict, "learned": dict, "learned_until_ms": int, "written_ms": dict, "tick": int,
    "tick_times": dict, "tables": dict, "digest": dict, "metrics": dict, "files": dict,
}  # fmt: skip


def folder_name(kind: str, seq: int) -> str:
    return f"{kind}-{seq:09d}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of one base or delta folder; LogBroken if it is not one that belongs there."""
    path = folder / MANIFEST
    data = path.read_bytes()
    try:
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, expected an object")
        for field, kind in _FIELDS.items():
            if not isinstance(found.get(field), kind):
                raise ValueError(f"field {field} is {found.get(field)!r}, expected {kind.__name__}")
        if found.pop("format") != FORMAT:
            raise ValueError(f"another format than {FORMAT}")
        tables = {name: TableInfo(**info) for name, info in found.pop("tables").items()}
        known = {f: found[f] for f in _FIELDS if f not in ("format", "tables")}
        manifest = Manifest(**known, tables=tables, folder=folder, sha256=hashlib.sha256(data).hexdigest())
    except (ValueError, TypeError) as e:
        raise LogBroken(f"{path}: not a manifest: {e}") from e
    stands = (folder.parent.name, folder.name)
    if (manifest.lineage, manifest.name) != stands:
        raise LogBroken(
            f"{path}: is {manifest.lineage}/{manifest.name}, expected {stands[0]}/{stands[1]}: a foreign file"
        )
    return manifest


def check_files(manifest: Manifest) -> None:
    """LogBroken unless the folder holds exactly the files its manifest lists, with their sizes and sha256."""
    for name in manifest.files:
        file_bytes(manifest, name)
    for path in manifest.folder.iterdir():
        if path.name not in manifest.files and path.name not in (MANIFEST, NEW_MANIFEST):
            raise LogBroken(f"{path}: a foreign file: {manifest.name} lists {', '.join(manifest.files)}")


def file_bytes(manifest: Manifest, name: str) -> bytes:
    """The bytes of one file of a manifest, checked against it."""
    path, expected = manifest.folder / name, manifest.files[name]
    try:
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise LogBroken(f"{path}: missing, {manifest.name} lists it") from e
    if len(data) != expected["bytes"]:
        raise LogBroken(f"{path}: {len(data)} bytes, expected {expected['bytes']}")
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != expected["sha256"]:
        raise LogBroken(f"{path}: sha256 {sha256}, expected {expected['sha256']}")
    return data


class Log:
    """A delta log's folder. It is read without locks: nothing exists until its manifest does."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def lineages(self) -> list[str]:
        """Lineages that have a manifest, oldest generation first."""
        if not self.path.is_dir():
            return []
        names = sorted(p.name for p in self.path.iterdir() if _LINEAGE.fullmatch(p.name))
        return [n for n in names if next(self.folders(n), None) is not None]

    def new_lineage(self) -> str:
        """The next generation: its name and its empty folder. Two that ask at once get different generations."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "LOCK", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            taken = [p.name for p in self.path.iterdir() if _LINEAGE.fullmatch(p.name)]
            generation = max((int(n[:6]) for n in taken), default=0) + 1
            name = f"{generation:06d}-{secrets.token_hex(4)}"
            (self.path / name).mkdir()
        flush_folder(self.path)
        return name

    def folders(self, lineage: str) -> Iterator[tuple[str, int, Path]]:
        """(kind, seq, folder) of what exists in a lineage, in no order. A folder without manifest does not exist."""
        if not _LINEAGE.fullmatch(lineage):
            raise ValueError(f"lineage is {lineage!r}, allowed is <6 digits>-<8 hex digits>")
        try:
            entries = list((self.path / lineage).iterdir())
        except FileNotFoundError:
            return
        for path in entries:
            match = _FOLDER.fullmatch(path.name)
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
            found.append(following)
            last = following
        return found

    def serving(self) -> str | None:
        """The lineage that is served, None before the first."""
        try:
            name = (self.path / "SERVING").read_text().strip()
        except FileNotFoundError:
            return None
        if not _LINEAGE.fullmatch(name):
            raise LogBroken(f"{self.path / 'SERVING'}: holds {name!r}, expected the name of a lineage")
        return name

    def serve(self, lineage: str) -> None:
        """Move the serving pointer, by rename; the lineage must have a base."""
        if not self.seqs(lineage, "base"):
            raise LogError(f"{self.path / lineage}: has no base, so it cannot be served")
        replace(self.path / "SERVING", lineage.encode() + b"\n")
