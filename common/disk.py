"""Files that outlive a crash of the machine: flushed, then visible by a rename, or a link that replaces nothing."""

from __future__ import annotations

import os
from pathlib import Path


def flushed(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def flush_folder(path: Path) -> None:
    """Flush a folder's entries: without it a crash of the machine can forget a file that was flushed."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes) -> None:
    """Under a name of this process, flushed, then renamed over what is there: the last of several writers stands."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    flushed(new, data)
    os.replace(new, path)
    flush_folder(path.parent)


def publish(new: Path, final: Path, data: bytes) -> None:
    """Under another name, flushed, then linked: a link, unlike a rename, fails if the name exists."""
    flushed(new, data)
    os.link(new, final)  # from here it exists
    os.unlink(new)
    flush_folder(final.parent)
