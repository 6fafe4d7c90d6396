"""common.disk: a name shows the old content or the new one, whole; a lock has one holder."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from common.disk import Busy, append, flushed, hold, locked, made_once, publish, replace, replacing
from tests.support.disk import full_disk


class Broken(Exception):
    pass


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    replace(path, b"old")
    replace(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    replace(path, b"old")
    with pytest.raises(Broken), replacing(path) as aside:
        aside.write_bytes(b"half")
        raise Broken
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pwrite = tmp_path / "lines", os.pwrite
    append(path, b"one\n")
    append(path, b"two\n" * 3)
    append(path, b"zwei\n", end=4)
    assert path.read_bytes() == b"one\nzwei\n"
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    append(path, b"three\n")  # a write may take a part
    with full_disk(17), pytest.raises(OSError):
        append(path, b"four\n")
    assert path.read_bytes() == b"one\nzwei\nthree\n"


def test_what_the_disk_does_not_take_is_named_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "delta"
    with full_disk():
        for write in (lambda: append(path, b"x"), lambda: replace(path, b"x"), lambda: flushed(path, b"x")):
            with pytest.raises(OSError) as raised:
                write()
            assert raised.value.filename == str(path)
    with pytest.raises(OSError) as raised, made_once(tmp_path / "folder") as aside, full_disk():
        flushed(aside / "rows", b"x")
    assert raised.value.filename == str(tmp_path / "folder")


def test_a_lock_needs_no_room_on_the_disk(tmp_path: Path) -> None:
    with full_disk(), hold(tmp_path / "LOCK", "one"), pytest.raises(Busy):
        hold(tmp_path / "LOCK", "another")


def test_what_is_published_is_never_replaced(tmp_path: Path) -> None:
    final = tmp_path / "manifest.json"
    publish(tmp_path / "manifest.new", final, b"first")
    with pytest.raises(FileExistsError):
        publish(tmp_path / "manifest.new", final, b"second")
    assert final.read_bytes() == b"first"


def test_a_folder_appears_complete_and_once(tmp_path: Path) -> None:
    final = tmp_path / "samples" / "day"
    with made_once(final) as aside:
        (aside / "part").mkdir()
        (aside / "part" / "rows").write_bytes(b"rows")
        assert not final.exists()
    assert (final / "part" / "rows").read_bytes() == b"rows"
    with pytest.raises(OSError), made_once(final) as aside:
        (aside / "other").touch()
    with pytest.raises(Broken), made_once(tmp_path / "samples" / "next"):
        raise Broken
    assert list(final.parent.iterdir()) == [final]


def test_a_lock_names_its_holder_and_is_free_when_that_one_ends(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "LOCK"
    with hold(path, "it has one writer"):
        with pytest.raises(Busy, match=f"held by process {os.getpid()}: it has one writer"):
            hold(path, "it has one writer")
    child = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(path,))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    hold(path, "it has one writer").close()


def _hold_and_die(path: Path) -> None:
    lock = hold(path, "")
    os._exit(9 if lock else 1)


def test_readers_share_a_lock_and_a_writer_has_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    with locked(path, shared=True), locked(path, shared=True), pytest.raises(Busy):
        hold(path, "readers are there")
    with locked(path), pytest.raises(Busy):
        hold(path, "a writer is there")
