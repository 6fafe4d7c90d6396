"""The file of the profile store: its tables, its connections, and its errors as one line.

    fresh        bucket | commit      -> blob of what the commit added to the bucket's profiles, 32 bytes a row
    profiles     bucket, entity, id   -> number of the profile
    slices       level | number       -> blob of the profile's slices of that age, 24 bytes a row (rows.py)
    pending, notes, tombstones        -> the rest of a commit

A bucket is a hash of a profile. A profile's number begins with its bucket, so a bucket's blobs lie side by side.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from features.profile.rows import Int64s
from streaming.slots import Slots

FILE = "profiles.sqlite"
VERSION = 1
BUCKET_BITS = 11
BUCKETS = 1 << BUCKET_BITS
COMMIT_BITS = 40
"""A fresh blob's key is bucket << COMMIT_BITS | commit."""
NUMBER_BITS = 40
"""A profile's number is bucket << NUMBER_BITS | its place in the bucket."""
LEVEL = 1 << 56
"""A slices' key is level * LEVEL + number."""
WAL_PAGES = 8000
"""A commit that finds so many pages in the WAL copies them into the file."""
WAL_BYTES = 64 << 20
_OF_WRITER = (
    "auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=FULL", "secure_delete=FAST",
    f"wal_autocheckpoint={WAL_PAGES}", f"journal_size_limit={WAL_BYTES}", "cache_size=-65536",
)  # fmt: skip
_TABLES = """
CREATE TABLE fresh (key INTEGER PRIMARY KEY, rows BLOB NOT NULL);
CREATE TABLE profiles (bucket INTEGER, entity INTEGER, profile INTEGER, number INTEGER NOT NULL,
                       PRIMARY KEY (bucket, entity, profile)) WITHOUT ROWID;
CREATE TABLE slices (key INTEGER PRIMARY KEY, rows BLOB NOT NULL);
CREATE TABLE pending (number INTEGER PRIMARY KEY, closes_ms INTEGER NOT NULL, rows BLOB NOT NULL);
CREATE TABLE notes (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE tombstones (entity INTEGER, profile INTEGER, at_ms INTEGER NOT NULL,
                         PRIMARY KEY (entity, profile)) WITHOUT ROWID;
"""
SLOTS, COMPACTED, SWEPT, CLOSED, POSITIONS = "slots", "compacted_ms", "swept", "closed_ms", "positions"
STORE_ID = "store_id"
"""The store's own notes. Those of its user begin with USER."""
USER = "user:"

Connection = sqlite3.Connection


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What SQLite refuses within the block becomes one line that names the file."""
    try:
        yield
    except sqlite3.DatabaseError as e:
        code = getattr(e, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise InputError(f"{path} is corrupt: {e}") from None
        raise OSError(errno.EIO, str(e), str(path)) from None


def connect(path: Path, *, writes: bool) -> Connection:
    """A connection for use by one thread at a time. Raises InputError if there is no store and it shall not write."""
    if not writes and not path.is_file():
        raise InputError(f"{path} is missing: the feature push makes it")
    with named(path):
        connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            for pragma in _OF_WRITER if writes else ("query_only=1",):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def transaction(connection: Connection, path: Path, begin: str = "BEGIN") -> Iterator[None]:
    """One transaction: durable at the end of the block, undone if the block raises."""
    with named(path):
        connection.execute(begin)
        try:
            yield
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def note(connection: Connection, name: str, data: bytes) -> None:
    connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, data))


def noted(connection: Connection, name: str) -> bytes | None:
    row = connection.execute("SELECT data FROM notes WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def number(connection: Connection, name: str, default: int = -1) -> int:
    """A note of the store's own that is a whole number."""
    data = noted(connection, name)
    return default if data is None else int(data)


def adopt(connection: Connection, path: Path, slots: Slots, *, writes: bool) -> None:
    """Makes the tables of a new store. Raises InputError if the store is of another version or of other slots."""
    with transaction(connection, path, "BEGIN IMMEDIATE" if writes else "BEGIN"):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0 and writes:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={VERSION}")
        elif version == 0:
            raise InputError(f"{path} is not made yet: the feature push makes it")
        elif version != VERSION:
            raise InputError(f"{path}: version is {version}; allowed is {VERSION}")
        stored = noted(connection, SLOTS)
        older = Slots.from_json(stored.decode()) if stored else slots
        refused = changes(older, slots)
        if refused and (writes or changes(slots, older)):
            raise InputError(f"{path}: {refused}; allowed are new slots and new actions at the end")
        if writes and (stored is None or older.sha256 != slots.sha256):
            note(connection, SLOTS, slots.to_json().encode())


def changes(old: Slots, new: Slots) -> str:
    """The first change by which `new` is not a growth of `old`; "" if it is one."""
    if new.actions[: len(old.actions)] != old.actions:
        return f"actions are {', '.join(new.actions)}, were {', '.join(old.actions)}"
    for place, was in enumerate(old.slots):
        if place >= len(new.slots):
            return f"slot {was.name} is removed"
        now = new.slots[place]
        for field in ("name", "entity", "by", "windows", "keep_ms"):
            if getattr(now, field) != getattr(was, field):
                return f"slot {was.name}: {field} is {getattr(now, field)!r}, was {getattr(was, field)!r}"
    return ""


def buckets_of(entity: Any, profile: Int64s) -> Int64s:
    """The bucket of each profile. `entity`: 0 user, 1 item; a number or an array."""
    mixed = (profile.astype(np.uint64) ^ (np.asarray(entity).astype(np.uint64) << np.uint64(40))) * np.uint64(
        0x9E3779B97F4A7C15
    )
    return (mixed >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)
