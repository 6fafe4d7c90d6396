"""The outbox of a profile store: which profiles have changed since Redis had them (features/profile/replica.py).

    outbox       version -> the profiles that a commit has changed, a blob of (entity, id), int64

A commit puts what it changes into the outbox, in its own transaction. So a kill before Redis has it loses nothing. The
versions grow for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.profile import database
from features.profile.database import Connection
from features.profile.rows import Int64s, matrix, seal, slots, unsealed
from features.profile.tombstones import ENTITIES
from streaming.slots import Slots

AT_ONCE = 5000
"""So many profiles have a version together when all of them wait."""
PUBLISHED = "published"
"""A note of the store: the newest version that was dropped."""
_TABLE = "CREATE TABLE IF NOT EXISTS outbox (version INTEGER PRIMARY KEY AUTOINCREMENT, changed BLOB NOT NULL)"


def lapse(connection: Connection) -> None:
    """Tells an outbox that commits pass it by: Redis then lacks more than what waits, and gets all when it is back."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox'").fetchone():
        version = connection.execute("INSERT INTO outbox (changed) VALUES (x'')").lastrowid or 0
        connection.execute("DELETE FROM outbox")
        database.note(connection, PUBLISHED, b"%d" % version)


class Waiting(NamedTuple):
    """Profiles that wait, each once; their newest version; and how many versions wait behind it."""

    version: int
    entity: Int64s
    profile: Int64s
    more: int


class Outbox:
    """The outbox, for use within the transactions of `connection`."""

    def __init__(self, connection: Connection, path: Path, declared: Slots) -> None:
        self._connection, self._path = connection, path
        self._entities = np.array([ENTITIES.index(slot.entity) for slot in declared.slots], np.int64)
        connection.execute(_TABLE)

    def put(self, slot: Int64s, profile: Int64s) -> None:
        """Adds the profiles of rows, under a new version."""
        self._put(self._pairs(self._entities[slot], profile))

    def put_profile(self, entity: int, profile: int) -> None:
        self._put(np.array([[entity, profile]], np.int64))

    def put_all(self) -> None:
        """All profiles of the store wait, and nothing else does."""
        self._connection.execute("DELETE FROM outbox")
        known = self._connection.execute("SELECT entity, profile FROM profiles").fetchall()
        parts = [np.array(known, np.int64).reshape(-1, 2)]
        for (blob,) in self._connection.execute("SELECT rows FROM fresh"):
            rows = matrix([unsealed(blob, f"{self._path}: fresh rows")], 4)
            parts.append(self._pairs(self._entities[slots(rows[2])], rows[0]))
        pairs = np.unique(np.concatenate(parts), axis=0)
        for first in range(0, len(pairs), AT_ONCE):
            self._put(pairs[first : first + AT_ONCE])

    def _pairs(self, entity: Int64s, profile: Int64s) -> Int64s:
        """Each pair once."""
        parts = [np.unique(profile[entity == number]) for number in range(len(ENTITIES))]
        return np.stack([np.repeat(np.arange(len(ENTITIES)), [len(part) for part in parts]), np.concatenate(parts)], 1)

    def _put(self, pairs: Int64s) -> None:
        if len(pairs):
            self._connection.execute("INSERT INTO outbox (changed) VALUES (?)", (seal(pairs.tobytes()),))

    def drop(self, version: int) -> None:
        """Drops what has this version or an older one, which Redis has."""
        self._connection.execute("DELETE FROM outbox WHERE version <= ?", (version,))
        database.note(self._connection, PUBLISHED, b"%d" % version)

    def dropped(self) -> int:
        """The newest version that was dropped; 0 before the first one."""
        return database.number(self._connection, PUBLISHED, 0)

    def waiting(self, after: int, most: int) -> Waiting:
        """About `most` profiles of the oldest versions after one."""
        version, parts, n = after, [np.empty((2, 0), np.int64)], 0
        query = "SELECT version, changed FROM outbox WHERE version > ? ORDER BY version LIMIT 1"
        while n < most and (row := self._connection.execute(query, (version,)).fetchone()):
            version = row[0]
            parts.append(matrix([unsealed(row[1], f"{self._path}: outbox")], 2))
            n += parts[-1].shape[1]
        entity, profile = self._pairs(*np.concatenate(parts, 1)).T
        (more,) = self._connection.execute("SELECT count(*) FROM outbox WHERE version > ?", (version,)).fetchone()
        return Waiting(version, entity, profile, more)
