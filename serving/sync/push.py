"""Pushes one delta to one version of a replica: the dense weights first, if it has new ones, then rows in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from delta_log.changes import Changes, TableChanges
from serving.replica import Replica
from serving.signatures import input_name

CHUNK_ROWS = 5000
"""Rows of one call. One call of 100,000 rows locks a table for up to 200 ms. 5,000 rows take 3.3 ms, one row 2.6 ms."""
PAUSE = 9.0
"""The pause after a chunk, in times of what that took. A delta of 100,000 rows then takes a second, and nine tenths of
it belong to requests alone (benchmarks/serving.py)."""
MAX_PAUSE_S = 0.05
"""A busy server takes long for a chunk. The delta must arrive all the same."""


def chunks(tables: dict[str, TableChanges], rows: int = CHUNK_ROWS) -> Iterator[dict[str, np.ndarray]]:
    """Yields the table inputs of each apply_delta call, at least one. Each has all inputs; what it does not use is
    empty."""
    unused: dict[str, np.ndarray] = {}
    for name, t in tables.items():
        unused |= {f"{name}_keys": t.keys[:0], f"{name}_rows": t.rows[:0], f"{name}_removed": t.removed[:0]}
    call, room, full_calls = dict(unused), rows, 0
    for name, t in tables.items():
        for kind, size in (("removed", len(t.removed)), ("keys", len(t.keys))):
            start = 0
            while start < size:
                part = slice(start, min(start + room, size))
                if kind == "removed":
                    call[f"{name}_removed"] = t.removed[part]
                else:
                    call[f"{name}_keys"], call[f"{name}_rows"] = t.keys[part], t.rows[part]
                start, room = part.stop, room - (part.stop - part.start)
                if room == 0:
                    yield call
                    call, room, full_calls = dict(unused), rows, full_calls + 1
    if room < rows or full_calls == 0:
        yield call


def push(delta: Changes, replica: Replica, version: int, token: str) -> int:
    """Sends the dense weights, if the delta changes them, and all chunks from chunk 0 on; returns the number of chunks.

    After Down or RefusedCall it can be called again: the version moves its seq with the last chunk only.
    """
    manifest = delta.manifest
    header: dict[str, Any] = {"lineage": manifest.lineage, "seq": manifest.seq, "token": token}
    if delta.dense:
        replica.call(version, "apply_dense", header | {input_name(name): value for name, value in delta.dense.items()})
    calls = list(chunks(delta.tables))
    header |= {
        "chunks": len(calls), "learned_until_ms": manifest.learned_until_ms, "dense_seq": manifest.dense_seq,
    }  # fmt: skip
    pause_s = 0.0
    for i, call in enumerate(calls):
        time.sleep(pause_s)
        began = time.perf_counter()
        replica.call(version, "apply_delta", header | {"chunk": i} | call)
        pause_s = min(PAUSE * (time.perf_counter() - began), MAX_PAUSE_S)
    return len(calls)
