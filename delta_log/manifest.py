"""One base or delta of a delta log: the fields of its manifest, and the files that it lists (docs/delta.md).

NumPy, pyarrow and the standard library only: serving reads the log without TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError

FORMAT = 3
MANIFEST = "manifest.json"
NEW_MANIFEST = "manifest.json.new"
"""A manifest before it is linked to its name; a writer killed right after the link leaves both names."""

LINEAGE = re.compile(r"\d{6}-[0-9a-f]{8}")
FOLDER = re.compile(r"(base|delta)-(\d{9})")


class LogError(InputError):
    """Something is wrong with the delta log; the message names the file, what was found and what was expected."""


class LogBroken(LogError):
    """A gap, a repeat, a flipped bit or a foreign file: refused, never skipped."""


class LogBusy(LogError):
    """Another writer holds the lineage."""


@dataclass(frozen=True)
class ModelInfo:
    """The model that a lineage trains: its module in training/models, and all its settings."""

    name: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        query = "&".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name}?{query}" if query else self.name


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
    model: ModelInfo
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
    "declaration": str, "model": dict, "positions": dict, "learned": dict, "learned_until_ms": int,
    "written_ms": dict, "tick": int, "tick_times": dict, "tables": dict, "digest": dict, "metrics": dict,
    "files": dict,
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
        model = ModelInfo(**found.pop("model"))
        fields = {f: found[f] for f in _FIELDS if f not in ("format", "model", "tables")}
        manifest = Manifest(
            **fields, model=model, tables=tables, folder=folder, sha256=hashlib.sha256(data).hexdigest()
        )
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
