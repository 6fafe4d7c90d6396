"""Compaction of the profile store: which buckets are folded when, and space that goes back to the disk.

The counts do not change by it. Each bucket is swept once in a day of event time.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from features.profile import database
from features.profile.database import BUCKETS, Connection
from features.profile.fold import Fold
from features.profile.transaction import Fresh
from streaming.slots import DAY_MS, Slots

MOST_ROWS, MOST_PIECES = 4000, 12
"""A bucket with so many fresh rows, or in so many pieces, is folded: a read looks through them."""
_STAGGER = 1 + np.arange(BUCKETS) * 7 % BUCKETS / BUCKETS
"""Some buckets are folded at half of that, so that not all are full at once."""
AT_ONCE = 16
"""Buckets that are folded together."""
FREE_PAGES, FREED_AT_ONCE = 4000, 1000
"""So many free pages, and a quarter of the file, stay for what comes; so many are given back at once."""


def compact(connection: Connection, path: Path, declared: Slots, fresh: Fresh, now_ms: int, budget_ms: float) -> bool:
    """Folds and sweeps buckets for about `budget_ms` in one transaction. Returns whether more is to do."""
    end = time.monotonic() + budget_ms / 1000
    with database.transaction(connection, path, "BEGIN IMMEDIATE"):
        now_ms = max(now_ms, database.number(connection, database.COMPACTED))
        due_tick = now_ms * BUCKETS // DAY_MS
        swept = max(database.number(connection, database.SWEPT, due_tick), due_tick - BUCKETS)
        fold = Fold(connection, path, declared, now_ms)
        more = True
        while more and time.monotonic() < end:
            if full := _full(fresh):
                fold.fold(full, sweep=False)
                fresh.rows[full] = fresh.pieces[full] = 0
            elif swept < due_tick:
                ticks = range(swept + 1, min(due_tick, swept + AT_ONCE) + 1)
                if some := _filled(connection, fresh, [tick % BUCKETS for tick in ticks]):
                    fold.fold(some, sweep=True)
                    fresh.rows[some] = fresh.pieces[some] = 0
                swept += len(ticks)
            else:
                more = _give_back(connection)
        database.note(connection, database.COMPACTED, b"%d" % now_ms)
        database.note(connection, database.SWEPT, b"%d" % swept)
        return more


def _full(fresh: Fresh) -> list[int]:
    """The buckets that are due, the fullest first."""
    load = np.maximum(fresh.rows / MOST_ROWS, fresh.pieces / MOST_PIECES) * _STAGGER
    (due,) = np.nonzero(load >= 1)
    return [int(bucket) for bucket in due[np.argsort(-load[due])][:AT_ONCE]]


def _filled(connection: Connection, fresh: Fresh, buckets: list[int]) -> list[int]:
    """Those of the buckets that hold anything."""
    query = "SELECT 1 FROM profiles WHERE bucket = ? LIMIT 1"
    return [b for b in buckets if fresh.pieces[b] or connection.execute(query, (b,)).fetchone()]


def _give_back(connection: Connection) -> bool:
    """Gives free pages back to the disk. Returns whether there were any to give."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    surplus = free - max(FREE_PAGES, pages // 4)
    if surplus > 0:
        connection.execute(f"PRAGMA incremental_vacuum({min(surplus, FREED_AT_ONCE)})").fetchall()
    return bool(surplus > 0)
