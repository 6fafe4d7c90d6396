"""The logged rows: a file that nobody can read is set aside, and the others are read without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from features import offline
from features.offline import Offline
from features.plan import plan_of
from tests.support import PROJECT

PLAN = plan_of(str(PROJECT / "tests/support/shop_views.py"))
START_MS = 1_700_000_000_000
DAMAGES = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "half": lambda data: data[: len(data) // 2],
    "zeros at its begin": lambda data: bytes(len(data) // 2) + data[len(data) // 2 :],
}


def row(view: str, at_ms: int, value: int) -> dict[str, list[Any]]:
    values = {"profile": {"city": [value]}, "video": {"brands": [[]], "price": [float(value)]}}[view]
    return {PLAN.key(view): [1], **values, "ts_ms": [at_ms]}


def logged(folder: Path) -> Offline:
    """Three rows of one key in each view of attributes."""
    rows = Offline(folder, PLAN, folder / "lock")
    rows.fill()
    for k in (1, 2, 3):
        for view in ("profile", "video"):
            rows.log(view, rows.table(view, row(view, START_MS + k, k)), 10 * k)
    return rows


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("use", ["newest", "arrivals", "compact"])
def test_a_broken_file_is_set_aside(use: str, damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "COMPACT_FILES", 2)
    rows = logged(tmp_path)
    for view in ("profile", "video"):
        file = tmp_path / "offline" / view / "30.parquet"
        file.write_bytes(damage(file.read_bytes()))
    arguments = {"newest": ["video"], "arrivals": ["video"], "compact": []}
    getattr(rows, use)(*arguments[use])
    assert (tmp_path / "offline/video/30.parquet.broken").exists()
    assert rows.newest("video")["price"].to_pylist() == [2.0]
    assert rows.arrivals("video")[1].tolist() == [10, 20]


def test_a_view_without_a_readable_file_is_empty(tmp_path: Path) -> None:
    rows = logged(tmp_path)
    for file in (tmp_path / "offline").rglob("*.parquet"):
        file.write_bytes(b"")
    assert rows.newest("video").num_rows == 0 and rows.arrivals("profile") == {}


def test_an_error_of_another_cause_is_raised_and_moves_nothing(tmp_path: Path) -> None:
    rows = logged(tmp_path)
    with pytest.raises(ZeroDivisionError):
        rows.unbroken(lambda: 1 // 0)
    assert not list(tmp_path.rglob("*.broken"))
