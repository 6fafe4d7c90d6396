"""Columns of attributes are kept until any process changes a row, and never more than a bound of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from features import online
from features.online import Online
from features.rows import SqliteRows

KEYS = [1, 2, 1]


def makers(reader: Online, keys: list[int]) -> list[int | None]:
    return reader.attributes("video", ["maker"], keys)["maker"]


def test_rows_are_kept_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Online(tmp_path, "simulator", "")
    reader.rows.write("video", {1: (5, {"maker": 3})})
    assert makers(reader, KEYS) == [3, None, 3]
    with monkeypatch.context() as patched:
        patched.setattr(reader.rows, "read", lambda *_: pytest.fail("the rows are read again"))
        assert makers(reader, KEYS) == [3, None, 3]
    SqliteRows(tmp_path / "online.db").write("video", {1: (6, {"maker": 4}), 2: (6, {})})
    assert makers(reader, KEYS) == [4, None, 4]
    reader.rows.write("video", {2: (7, {"maker": 5})})
    assert makers(reader, KEYS) == [4, 5, 4]
    reader.rows.clear(["video"])
    assert makers(reader, KEYS) == [None, None, None]


def test_rows_of_an_unknown_state_are_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, asked = Online(tmp_path, "simulator", ""), []
    monkeypatch.setattr(reader.rows, "state", lambda: None)
    monkeypatch.setattr(reader.rows, "read", lambda view, keys: asked.append(keys) or [None] * len(keys))
    for _ in range(2):
        makers(reader, KEYS)
    assert asked == [KEYS, KEYS]


def test_more_rows_than_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "MOST_KEPT", 3)
    reader = Online(tmp_path, "simulator", "")
    reader.rows.write("video", {key: (5, {"maker": 10 * key}) for key in range(9)})
    for keys in ([0, 1, 2], [2, 3], [3, 4, 5, 6, 7, 8], [8], []):
        assert makers(reader, keys) == [10 * key for key in keys]
