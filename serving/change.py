"""One delta as serving needs it: read and checked once, then pushed to versions in chunks and folded into journals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from serving.journal import Changes, Float32s
from serving.replica import Replica, scalar
from training.delta import Manifest
from training.row_files import read_dense, read_removed, read_rows

CHUNK_ROWS = 2000
"""Rows a call: a whole 100k-row call held the table's lock up to 200 ms, chunks of 2-5 thousand keep the tail flat."""


class Change(NamedTuple):
    manifest: Manifest
    tables: dict[str, Changes]
    dense: dict[str, Float32s]


def read(manifest: Manifest) -> Change:
    """LogBroken if a file is not what the manifest says."""
    removed = read_removed(manifest)
    tables = {name: Changes(keys, rows, removed[name]) for name, (keys, rows) in read_rows(manifest).items()}
    return Change(manifest, tables, {name: w.value for name, w in read_dense(manifest).items()})


def input_name(weight: str) -> str:
    """The input of `apply_dense` that carries `weight`."""
    return re.sub(r"\W", "_", weight)


def chunks(tables: dict[str, Changes], rows: int = CHUNK_ROWS) -> Iterator[dict[str, np.ndarray]]:
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


def push(change: Change, replica: Replica, version: int, token: str) -> int:
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
