"""The record of each lineage that a warm start began: <log>/candidates/<lineage>.json.

A record names the data that the lineage learned (data_sha256, from, positions) and holds the report of its evaluation.
So each step of a warm start can be killed and run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from common import process
from common.disk import Busy, hold, locked, replace
from delta_log.log import Log
from delta_log.manifest import LogError

log = process.logger("warm_start")


def read(delta_log: Log, lineage: str) -> dict[str, Any]:
    """The record of a lineage. Raises LogError if no warm start began the lineage."""
    path = delta_log.path / "candidates" / f"{lineage}.json"
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise LogError(
            f"{path}: no warm start began lineage {lineage} (python -m training.pipeline.warm_start train)"
        ) from e
    return record


def write(delta_log: Log, lineage: str, record: dict[str, Any]) -> None:
    folder = delta_log.path / "candidates"
    folder.mkdir(exist_ok=True)
    replace(folder / f"{lineage}.json", json.dumps(record, indent=1).encode() + b"\n")


def one_at_a_time(delta_log: Log) -> AbstractContextManager[object]:
    """Holds <log>/candidates/LOCK for a `with` block. A second warm start waits, then continues what the first began.

    Without the lock, two warm starts with the same data would begin two lineages.
    """
    if not delta_log.path.is_dir():
        return nullcontext()
    path = delta_log.path / "candidates" / "LOCK"
    try:
        return hold(path, "one warm start at a time works on a log")
    except Busy as e:
        log.info("%s: waiting until it has ended", e)
        return locked(path)


def that_serves(delta_log: Log, examples_sha256: str, declaration: str) -> dict[str, Any] | None:
    """The record of the served lineage, if a warm start began it with these examples."""
    lineage = delta_log.serving()
    return _first(delta_log, [lineage] if lineage else [], given_sha256=examples_sha256, declaration=declaration)


def begun_with(delta_log: Log, record: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a lineage that learned the same data from the same base with the same model, if there is one."""
    same = {field: record[field] for field in ("data_sha256", "from", "declaration", "model")}
    return _first(delta_log, reversed(delta_log.lineages()), **same)


def _first(delta_log: Log, lineages: Iterable[str], **fields: Any) -> dict[str, Any] | None:
    for lineage in lineages:
        try:
            record = read(delta_log, lineage)
        except LogError:
            continue
        if fields.items() <= record.items():
            return record
    return None
