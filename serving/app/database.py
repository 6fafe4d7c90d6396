"""The service's SQLite file: the texts of text ids, and which items a recommendation showed.

A commit survives a kill of the process. A crash of the machine may forget the last ones.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from serving.app.problem import Problem
from streaming.hashing import text_id

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS texts (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS recommendations (id TEXT PRIMARY KEY, made_ms INTEGER NOT NULL, items BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS recommendations_by_time ON recommendations (made_ms);
"""
_PRUNE_EVERY = 1000
_AT_ONCE = 500


class Recommended(NamedTuple):
    """When a list was made (event time), and its items in the order of their positions."""

    made_ms: int
    items: list[int]


class Database:
    """One connection, for all threads. Recommendations are forgotten `keep_ms` after they were made."""

    def __init__(self, path: Path, keep_ms: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.executescript(_SCHEMA)
        self._lock, self._keep_ms, self._added = threading.Lock(), keep_ms, 0

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def remember(self, texts: Iterable[str]) -> None:
        """Keeps each text beside its id. Raises Problem if another text has the same id."""
        for text in texts:
            row = (text_id(text), text)
            with self._lock:
                self._connection.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", row)
                (kept,) = self._connection.execute("SELECT text FROM texts WHERE id = ?", row[:1]).fetchone()
            if kept != text:
                raise Problem(409, f"the text id {text!r} has the same hash as {kept!r}; allowed is another text")

    def texts(self, ids: Sequence[int]) -> dict[int, str]:
        """The texts of those ids that were made of one."""
        found: dict[int, str] = {}
        for first in range(0, len(ids), _AT_ONCE):
            some = list(ids[first : first + _AT_ONCE])
            query = f"SELECT id, text FROM texts WHERE id IN ({','.join('?' * len(some))})"
            with self._lock:
                found.update(self._connection.execute(query, some).fetchall())
        return found

    def forget(self, id: int) -> None:
        """Forgets the text of an id."""
        with self._lock:
            self._connection.execute("DELETE FROM texts WHERE id = ?", (id,))

    def add(self, recommendation_id: str, made_ms: int, items: Sequence[int]) -> None:
        """Keeps what a recommendation showed."""
        row = (recommendation_id, made_ms, array("q", items).tobytes())
        with self._lock:
            self._connection.execute("INSERT INTO recommendations VALUES (?, ?, ?)", row)
            self._added += 1
            if self._added % _PRUNE_EVERY == 0:
                self._connection.execute("DELETE FROM recommendations WHERE made_ms < ?", (made_ms - self._keep_ms,))

    def find(self, recommendation_id: str) -> Recommended | None:
        """A recommendation, or None if nobody made it, or it is forgotten."""
        query = "SELECT made_ms, items FROM recommendations WHERE id = ?"
        with self._lock:
            row = self._connection.execute(query, (recommendation_id,)).fetchone()
        return None if row is None else Recommended(row[0], list(array("q", row[1])))
