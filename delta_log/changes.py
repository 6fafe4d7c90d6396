"""The part of a base or delta that serving needs: rows without optimizer slots, removed keys, dense weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from delta_log.files import Float32s, Int64s, read_removed, read_rows, read_served
from delta_log.manifest import Manifest


class TableChanges(NamedTuple):
    """One table: keys int64[n] with rows float32[n, dim], and removed keys int64[m]. No key is in both."""

    keys: Int64s
    rows: Float32s
    removed: Int64s


def fold(older: TableChanges, newer: TableChanges) -> TableChanges:
    """Folds two changes into one: the newest value of a key wins, and a key stays removed unless `newer` has it."""
    stale = np.isin(older.keys, np.concatenate([newer.keys, newer.removed]))
    return TableChanges(
        np.concatenate([older.keys[~stale], newer.keys]),
        np.concatenate([older.rows[~stale], newer.rows]),
        np.setdiff1d(np.union1d(older.removed, newer.removed), newer.keys),
    )


def no_changes(dim: int) -> TableChanges:
    return TableChanges(np.empty(0, np.int64), np.empty((0, dim), np.float32), np.empty(0, np.int64))


class Changes(NamedTuple):
    """One base or delta: its manifest, its changes by table, and the dense weights by name; {} if they stay."""

    manifest: Manifest
    tables: dict[str, TableChanges]
    dense: dict[str, Float32s]


def read_changes(manifest: Manifest) -> Changes:
    """Reads the changes of one base or delta. Raises LogBroken if a file differs from its manifest."""
    removed = read_removed(manifest)
    tables = {name: TableChanges(keys, rows, removed[name]) for name, (keys, rows) in read_rows(manifest).items()}
    return Changes(manifest, tables, read_served(manifest))
