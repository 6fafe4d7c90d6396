"""The file of the profile store: its growth, and what is refused by name."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import InputError
from features.profile import database
from features.profile.query import Query
from features.profile.store import Profiles
from streaming.slots import DAY_MS, Slot, Slots
from tests.support.disk import fill, small_disk
from tests.support.profile_oracle import DECLARED, Event, adds

NOW_MS = 1_790_000_000_000
ALL = Query("user_item", "all")


def add(store: Profiles, *events: Event) -> None:
    with store.writing() as commit:
        commit.add(adds(events))


def test_a_store_grows_at_the_end(tmp_path: Path) -> None:
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, Event(2, 7, 1, NOW_MS, 2, 1))
    grown = Slots((*DECLARED.slots, Slot("tab", "item", by="tab")), (*DECLARED.actions, "share"))
    with Profiles(tmp_path, grown) as reader:
        assert reader.read("user", [7], [ALL], NOW_MS)[0].counts.tolist() == [[0, 0, 1, 0]]
    with Profiles(tmp_path, grown, writes=True) as store, Profiles(tmp_path, DECLARED) as before:
        add(store, Event(3, 7, 1, NOW_MS, 3, 1), Event(2, 7, 1, NOW_MS, 1, 1))
        assert store.read("item", [7], [Query("tab", "1h")], NOW_MS)[0].counts.tolist() == [[0, 0, 0, 1]]
        assert before.read("user", [7], [ALL], NOW_MS)[0].counts.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    "slots, actions, message",
    [
        (DECLARED.slots[:2], DECLARED.actions, "slot user_item is removed"),
        (
            (replace(DECLARED.slots[0], keep_ms=31 * DAY_MS), *DECLARED.slots[1:]),
            DECLARED.actions,
            f"slot user_author: keep_ms is {31 * DAY_MS}, was {30 * DAY_MS}",
        ),
        (DECLARED.slots, ("shown", "like", "click"), "actions are shown, like, click, were shown, click, like"),
    ],
)
def test_other_slots_are_refused(
    tmp_path: Path, slots: tuple[Slot, ...], actions: tuple[str, ...], message: str
) -> None:
    with Profiles(tmp_path, DECLARED, writes=True):
        pass
    with pytest.raises(InputError, match=f"{message}; allowed are new slots and new actions at the end"):
        Profiles(tmp_path, Slots(slots, actions), writes=True)
    with Profiles(tmp_path, DECLARED, writes=True):
        pass


def test_a_corrupt_blob_is_refused_by_name(tmp_path: Path) -> None:
    with Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, Event(2, 7, 1, NOW_MS, 2, 1))
        with closing(sqlite3.connect(tmp_path / database.FILE)) as raw, raw:
            raw.execute("UPDATE fresh SET rows = CAST(substr(rows, 1, 20) || x'7f' || substr(rows, 22) AS BLOB)")
        for refused in (lambda: store.read("user", [7], [ALL], NOW_MS), lambda: swept(store, NOW_MS)):
            with pytest.raises(InputError, match=r"profiles\.sqlite: bucket \d+: a blob is corrupt, its checksum"):
                refused()
        with closing(sqlite3.connect(tmp_path / database.FILE)) as raw, raw:
            raw.execute("UPDATE fresh SET rows = CAST(substr(rows, 1, 20) || x'00' || substr(rows, 22) AS BLOB)")
        assert store.read("user", [7], [ALL], NOW_MS)[0].counts.tolist() == [[0, 0, 1]], (
            "nothing is lost by the refusal"
        )
        swept(store, NOW_MS)
        with closing(sqlite3.connect(tmp_path / database.FILE)) as raw, raw:
            raw.execute("UPDATE slices SET rows = substr(rows, 1, 20)")
        with pytest.raises(InputError, match=r"profiles\.sqlite: user 7: a blob is corrupt, its checksum differs"):
            store.read("user", [7], [ALL], NOW_MS + DAY_MS)


def swept(store: Profiles, now_ms: int) -> None:
    """A day passes: everything is folded."""
    store.compact(now_ms)
    while store.compact(now_ms + DAY_MS):
        pass


def test_a_corrupt_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / database.FILE).write_bytes(b"no database" * 1000)
    for writes in (True, False):
        with pytest.raises(InputError, match=r"profiles\.sqlite is corrupt: file is not a database"):
            Profiles(tmp_path, DECLARED, writes=writes)
    (tmp_path / database.FILE).unlink()
    with closing(sqlite3.connect(tmp_path / database.FILE)) as raw, raw:
        raw.execute("PRAGMA user_version=7")
    with pytest.raises(InputError, match=r"profiles\.sqlite: version is 7; allowed is 1"):
        Profiles(tmp_path, DECLARED)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path, megabytes=8), Profiles(tmp_path, DECLARED, writes=True) as store:
        add(store, Event(2, 7, 1, NOW_MS, 2, 1))
        full = fill(tmp_path)
        many = [Event(2, profile, 1, NOW_MS, 0, 1) for profile in range(3000)]
        with pytest.raises(OSError, match="No space left on device: '.*profiles.sqlite'"):
            add(store, *many)
        assert store.read("user", [7], [ALL], NOW_MS)[0].counts.tolist() == [[0, 0, 1]]
        full.unlink()
        add(store, *many)
        swept(store, NOW_MS)
        assert store.read("user", [7], [ALL], NOW_MS + DAY_MS)[0].counts.tolist() == [[1, 0, 1]]
