"""One delta as serving needs it: read and checked once, then pushed to versions in chunks and folded into journals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from delta_log.changes import Changes, TableChanges
from serving.replica import Replica, scalar
from serving.signatures import input_name

CHUNK_ROWS = 2000
"""Rows a call: a whole 100k-row call held the table's lock up to 200 ms, chunks of 2-5 thousand keep the tail flat."""


def chunks(tables: dict[str, TableChanges], rows: int = CHUNK_ROWS) -> Iterator[dict[str, np.ndarray]]:
    """The table inputs of each apply_delta call, at least one; all inputs are always fed, empty where unused."""
    unused: dict[str, np.ndarray] = {}
    for name, t in tables.items():
        unused |= {f"{name}_keys": t.keys[:0], f"{name}_rows": t.rows[:0], f"{name}_removed": t.removed[:0]}
    call, room, made = dict(unused), rows, 0
    for name, t in tables.items():
        for kind, size in (("removed", len(t.removed)), ("keys", len(t.keys))):
            at = 0
            while at < size:
                taken = slice(at, at + min(room, size - at))
                if kind == "removed":
                    call[f"{name}_removed"] = t.removed[taken]
                else:
                    call[f"{name}_keys"], call[f"{name}_rows"] = t.keys[taken], t.rows[taken]
                at, room = taken.stop, room - (taken.stop - taken.start)
                if room == 0:
                    yield call
                    call, room, made = dict(unused), rows, made + 1
    if room < rows or made == 0:
        yield call


def push(change: Changes, replica: Replica, version: int, token: str) -> int:
    """Dense, then every chunk, begun at 0; the number of chunks. Down or RefusedCall leaves seq where it was."""
    m = change.manifest
    who: dict[str, Any] = {"lineage": m.lineage, "seq": scalar(m.seq), "token": token}
    dense = {input_name(name): value for name, value in change.dense.items()}
    replica.call(version, "apply_dense", who | dense)
    calls = list(chunks(change.tables))
    until = {"chunks": scalar(len(calls)), "learned_until_ms": scalar(m.learned_until_ms)}
    for i, call in enumerate(calls):
        replica.call(version, "apply_delta", who | until | {"chunk": scalar(i)} | call)
    return len(calls)
