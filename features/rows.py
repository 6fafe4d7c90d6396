"""Attribute rows of users and items for reads: the newest row of each key as one packed value, in SQLite or in Redis.

    rows = SqliteRows(folder / "online.db")
    rows.write("video", {9: (ts_ms, {"author": 3})})
    rows.read("video", [9, 8])              # [(ts_ms, {"author": 3}), None]

An older event never overwrites a newer one, under any number of writers: the write itself compares. Of equal times the
later write stands (a correction).
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import orjson

Row = tuple[int, dict[str, Any]]
"""The event time of a row in ms, and its columns."""
_AT_ONCE = 5000


class Rows(Protocol):
    """The rows of all attribute views."""

    def write(self, view: str, rows: Mapping[int, Row]) -> None:
        """Makes rows readable, key -> row, each unless a newer one of its key is there."""

    def read(self, view: str, keys: Sequence[int]) -> list[Row | None]:
        """The row of each key; None if there is none."""

    def clear(self, views: Iterable[str]) -> None:
        """Removes all rows of views."""

    def state(self) -> object:
        """While it is the same, so are all rows; None: that is not known."""


class SqliteRows:
    """Rows in an SQLite file, which any number of processes read and write."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._db.close)
        self._changes = 0
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS rows (view TEXT, key INTEGER, event_ms INTEGER NOT NULL, data BLOB NOT NULL,"
            " PRIMARY KEY (view, key)) WITHOUT ROWID"
        )

    def write(self, view: str, rows: Mapping[int, Row]) -> None:
        values = [(view, key, event_ms, orjson.dumps(columns)) for key, (event_ms, columns) in rows.items()]
        with self._changing(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO rows VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET event_ms = excluded.event_ms,"
                " data = excluded.data WHERE excluded.event_ms >= event_ms",
                values,
            )

    def read(self, view: str, keys: Sequence[int]) -> list[Row | None]:
        stored: dict[int, Row] = {}
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            query = f"SELECT key, event_ms, data FROM rows WHERE view = ? AND key IN ({','.join('?' * len(some))})"
            with self._lock:
                found = self._db.execute(query, (view, *some)).fetchall()
            stored |= {key: (event_ms, orjson.loads(data)) for key, event_ms, data in found}
        return [stored.get(key) for key in keys]

    def clear(self, views: Iterable[str]) -> None:
        with self._changing():
            self._db.executemany("DELETE FROM rows WHERE view = ?", [(view,) for view in views])

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """SQLite's data_version tells the commits of others only, so the own ones are counted."""
        with self._lock:
            try:
                yield
            finally:
                self._changes += 1

    def state(self) -> object:
        with self._lock:
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
            return version, self._changes


_NEWEST = """
local stored = redis.call('GETRANGE', KEYS[1], 0, 15)
if stored == '' or tonumber(stored) <= tonumber(string.sub(ARGV[1], 1, 16)) then
    redis.call('SET', KEYS[1], ARGV[1])
end
"""


class RedisRows:
    """Rows in Redis: a string a row, of 16 digits of event time and the packed columns."""

    def __init__(self, address: str) -> None:
        import redis

        host, _, port = address.partition(":")
        self._redis: Any = redis.Redis(host, int(port or 6379))
        self._newest = self._redis.register_script(_NEWEST)

    def write(self, view: str, rows: Mapping[int, Row]) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for key, (event_ms, columns) in rows.items():
                self._newest([_name(view, key)], [b"%016d%b" % (event_ms, orjson.dumps(columns))], client=pipe)
            pipe.execute()

    def read(self, view: str, keys: Sequence[int]) -> list[Row | None]:
        values = self._redis.mget([_name(view, key) for key in keys]) if keys else []
        return [None if value is None else (int(value[:16]), orjson.loads(value[16:])) for value in values]

    def clear(self, views: Iterable[str]) -> None:
        for view in views:
            for name in self._redis.scan_iter(f"minutehand:{view}:*", count=1000):
                self._redis.delete(name)

    def state(self) -> object:
        return None


def _name(view: str, key: int) -> str:
    return f"minutehand:{view}:{key}"
