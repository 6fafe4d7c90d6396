"""What is known of a lineage that a warm start began: <log>/candidates/<lineage>.json, replaced by rename.

What it learned (data_sha256, begun_from, positions), how it was judged, whether it was promoted: so each step of a warm
start may be killed and run again.
"""

from __future__ import annotations

import json
import os
from typing import Any

from streaming.disk import flush_folder, flushed
from training.delta import Log, LogError


def read(log: Log, lineage: str) -> dict[str, Any]:
    """LogError if no warm start began that lineage."""
    path = log.path / "candidates" / f"{lineage}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise LogError(f"{path}: no warm start began lineage {lineage} (python -m training.warm_start train)") from e
    return found


def write(log: Log, lineage: str, known: dict[str, Any]) -> None:
    folder = log.path / "candidates"
    folder.mkdir(exist_ok=True)
    new = folder / f"{lineage}.json.new"
    flushed(new, json.dumps(known, indent=1).encode() + b"\n")
    os.replace(new, folder / f"{lineage}.json")
    flush_folder(folder)


def begun_with(log: Log, data_sha256: str, begun_from: str, declaration: str) -> str | None:
    """A lineage that learned the same data from the same beginning, and exists."""
    for lineage in reversed(log.lineages()):
        try:
            known = read(log, lineage)
        except LogError:
            continue
        if (known["data_sha256"], known["from"], known["declaration"]) == (data_sha256, begun_from, declaration):
            return lineage
    return None
