"""What is known of a lineage that a warm start began: <log>/candidates/<lineage>.json, replaced by rename.

What it learned (data_sha256, begun_from, positions), how it was judged, whether it was promoted: so each step of a warm
start may be killed and run again.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common.disk import replace
from delta_log.log import Log
from delta_log.manifest import LogError

logger = logging.getLogger("warm_start")


def read(log: Log, lineage: str) -> dict[str, Any]:
    """LogError if no warm start began that lineage."""
    path = log.path / "candidates" / f"{lineage}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise LogError(
            f"{path}: no warm start began lineage {lineage} (python -m training.pipeline.warm_start train)"
        ) from e
    return found


def write(log: Log, lineage: str, known: dict[str, Any]) -> None:
    folder = log.path / "candidates"
    folder.mkdir(exist_ok=True)
    replace(folder / f"{lineage}.json", json.dumps(known, indent=1).encode() + b"\n")


@contextmanager
def one_at_a_time(log: Log) -> Iterator[None]:
    """Holds <log>/candidates/LOCK: of two warm starts at once the second waits, and finds what the first one began.

    Without it the same data would begin two lineages. It ends with its process, however that ends.
    """
    if not log.path.is_dir():  # nothing is there to share
        yield
        return
    (log.path / "candidates").mkdir(exist_ok=True)
    with open(log.path / "candidates" / "LOCK", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another warm start works on %s: waiting until it has ended", log.path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def that_serves(log: Log, given_sha256: str, declaration: str) -> dict[str, Any] | None:
    """What is known of the served lineage, if a warm start began it with these very examples."""
    serving = log.serving()
    try:
        known = read(log, serving) if serving else {}
    except LogError:
        return None
    same = (known.get("given_sha256"), known.get("declaration")) == (given_sha256, declaration)
    return known if same else None


def begun_with(log: Log, candidate: dict[str, Any]) -> str | None:
    """The lineage that learned the same data from the same beginning with the same model, if it exists."""
    same = ("data_sha256", "from", "declaration", "model")
    for lineage in reversed(log.lineages()):
        try:
            known = read(log, lineage)
        except LogError:
            continue
        if all(known[field] == candidate[field] for field in same):
            return lineage
    return None
