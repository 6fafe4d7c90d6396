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

from common.disk import Busy
from common.errors import InputError

FORMAT = 4
MANIFEST = "manifest.json"
NEW_MANIFEST = "manifest.json.new"
"""A manifest before it is linked to its name; a writer killed right after the link leaves both names."""

LINEAGE = re.compile(r"\d{6}-[0-9a-f]{8}")
FOLDER = re.compile(r"(base|delta)-(\d{9})")


class LogError(InputError):
    """Something is wrong with the delta log; the message names the file, its state and the expected state."""


class LogBroken(LogError):
    """A gap, a repeat, a flipped bit or a foreign file: refused, never skipped."""


LogBusy = Busy
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
    """One table: floats and optimizer slots of a row, rows and removed keys in these files, rows of the whole table.

    `admission` is the shape of the filter that decides which ids get a row ("": no filter). These files hold `lines`
    lines of the filter.
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
    """One base or delta: the fields of docs/delta.md, its folder, and the sha256 of the manifest's bytes."""

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
    dense_seq: int
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
        """The sha256 that the next delta must name as `previous`."""
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
    "written_ms": dict, "tick": int, "tick_times": dict, "dense_seq": int, "tables": dict, "digest": dict,
    "metrics": dict, "files": dict,
}  # fmt: skip


def folder_name(kind: str, seq: int) -> str:
    return f"{kind}-{seq:09d}"


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a base's or delta's folder. Raises LogBroken if it does not belong there."""
    path = folder / MANIFEST
    data = path.read_bytes()
    try:
        parsed = json.loads(data)
        if not isinstance(parsed, dict):
            raise ValueError(f"a {type(parsed).__name__}, expected an object")
        for field, kind in _FIELDS.items():
            if not isinstance(parsed.get(field), kind):
                raise ValueError(f"field {field} is {parsed.get(field)!r}, expected {kind.__name__}")
        fields = {field: parsed[field] for field in _FIELDS}
        if fields.pop("format") != FORMAT:
            raise ValueError(f"another format than {FORMAT}")
        fields["tables"] = {name: TableInfo(**info) for name, info in fields["tables"].items()}
        fields["model"] = ModelInfo(**fields["model"])
        manifest = Manifest(**fields, folder=folder, sha256=hashlib.sha256(data).hexdigest())
    except (ValueError, TypeError) as e:
        raise LogBroken(f"{path}: not a manifest: {e}") from e
    name, expected = f"{manifest.lineage}/{manifest.name}", f"{folder.parent.name}/{folder.name}"
    if name != expected:
        raise LogBroken(f"{path}: is {name}, expected {expected}: a foreign file")
    return manifest


def check_files(manifest: Manifest) -> None:
    """Raises LogBroken unless the folder holds exactly the listed files, with their sizes and sha256."""
    for name in manifest.files:
        file_bytes(manifest, name)
    for path in manifest.folder.iterdir():
        if path.name not in manifest.files and path.name not in (MANIFEST, NEW_MANIFEST):
            raise LogBroken(f"{path}: a foreign file: {manifest.name} lists {', '.join(manifest.files)}")


def file_bytes(manifest: Manifest, name: str) -> bytes:
    """Reads one file of a manifest and checks its size and sha256."""
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
