"""Every file that is written whole or not at all, and every lock of a folder.

with replacing(path) as aside:          # a new file in place of an old one: a reader sees one of them, whole
    pq.write_table(table, aside)
with made_once(folder) as aside:        # a folder that appears complete
    ...
append(path, data)                      # at the end of a file, whole or not at all
with hold(folder / "LOCK", "one writer"):
    ...

A crash of the machine leaves either state too: contents are flushed before a name shows them, then the name itself is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from common.errors import InputError


class Busy(InputError):
    """Another process holds a lock; the message names the lock and that process."""


@contextmanager
def _named(path: Path, aside: Path | None = None) -> Iterator[None]:
    """An OSError of the block names `path`: the system names nothing when a write to an open file fails.

    `aside` is where `path` is made; a person has never heard of it.
    """
    try:
        yield
    except OSError as e:
        if e.errno is not None and (e.filename is None or aside and str(e.filename).startswith(str(aside))):
            e.filename = str(path)
        raise


def flushed(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    with _named(path), open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Flush a folder's entries: without it a crash of the machine can forget a file that was flushed."""
    _flush(path, os.O_RDONLY | os.O_DIRECTORY)


def _flush(path: Path, flags: int = os.O_RDONLY) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """A name beside `path` to write to; at the end that file is flushed and takes the place of `path`.

    The name is this process's own: of several writers the last one stands. If the block raises, `path` stays as it was.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode))
        os.chmod(aside, mode)  # whatever the umask is
        with _named(path, aside):
            yield aside
            _flush(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """`data` in place of what is at `path`, as `replacing` does it."""
    with replacing(path, mode) as aside:
        aside.write_bytes(data)


def append(path: Path, data: bytes, end: int | None = None) -> None:
    """Writes `data` behind byte `end` of a file (None: its last one), cuts off what follows, and flushes it.

    After an OSError the file ends at `end`. A kill may leave a part of `data`.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        with _named(path):
            end = os.fstat(fd).st_size if end is None else end
            os.ftruncate(fd, end)
            _write(fd, data, end)
    finally:
        os.close(fd)


def _write(fd: int, data: bytes, at: int) -> None:
    rest, end = memoryview(data), at
    try:
        while rest:
            written = os.pwrite(fd, rest, at)
            rest, at = rest[written:], at + written
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, end)
        raise


def publish(new: Path, final: Path, data: bytes) -> None:
    """Write `new`, flush it, and link it to `final`. Raises FileExistsError if `final` exists: nothing is replaced."""
    flushed(new, data)
    os.link(new, final)  # from here it exists
    os.unlink(new)
    flush_folder(final.parent)


def move(folder: Path, final: Path) -> None:
    """Flushes all files of a folder, then gives it the name `final`. Raises OSError if that exists and is not empty."""
    for path in folder.rglob("*"):
        _flush(path)
    flush_folder(folder)
    os.rename(folder, final)
    flush_folder(final.parent)


@contextmanager
def made_once(final: Path) -> Iterator[Path]:
    """A new folder beside `final` to fill; at the end it gets the name `final`, as `move` does it.

    Raises OSError if `final` exists by then and is not empty. If the block raises, nothing is left.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        aside.chmod(0o755)
        with _named(final, aside):
            yield aside
            move(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def hold(path: Path, reason: str) -> IO[str]:
    """The lock file `path`, held until it is closed or the process ends. Raises Busy, with `reason`, if it is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = open(path, "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise Busy(f"{path}: held by process {holder}: {reason}") from None
    lock.truncate(0)
    with suppress(OSError):  # a full disk: the lock holds without the number that a message names
        os.write(lock.fileno(), f"{os.getpid()}\n".encode())
    return lock


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Waits for the lock file `path` and holds it for the block; several may hold it `shared` at once."""
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
