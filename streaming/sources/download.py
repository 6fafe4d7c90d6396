"""Fetches a data set's official archive into the cache, once: checksum checked, resumed where it broke off.

The cache is MINUTEHAND_CACHE, else ~/.cache/minutehand.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

CONNECT_S = 10.0
_CHUNK = 1 << 20

log = logging.getLogger("download")


class NoConnection(ValueError):
    """The archive's host could not be reached, or fell silent: a demo goes on with the simulator.

    A ValueError, as all that is wrong with a source: a command says it in one line.
    """


class Archive(NamedTuple):
    """A .tar.gz on the network: what to take out of it, and whom to thank."""

    name: str
    url: str
    md5: str
    members: tuple[str, ...]
    licence: str
    citation: str


def cache() -> Path:
    given = os.environ.get("MINUTEHAND_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "minutehand"


def fetch(archive: Archive, folder: Path | None = None) -> Path:
    """The folder that holds the archive's members, downloaded first if it is not there.

    Raises NoConnection, or ValueError if what came has another checksum (it is removed: the next call begins anew).
    """
    root = cache() if folder is None else folder
    target = root / archive.name
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    log.info("%s: %s. Licence: %s", archive.name, archive.citation, archive.licence)
    packed = root / (archive.url.rsplit("/", 1)[-1] + ".part")
    _download(archive.url, packed)
    found = _md5(packed)
    if found != archive.md5:
        packed.unlink()
        raise ValueError(f"{archive.url}: md5 is {found}, expected is {archive.md5}; removed, try again")
    aside = root / f"{archive.name}.{os.getpid()}.new"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _unpack(packed, archive.members, aside)
        aside.rename(target)  # from here on it exists, and it is whole
    except OSError:
        if not target.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    packed.unlink(missing_ok=True)
    return target


def _download(url: str, to: Path) -> None:
    have = to.stat().st_size if to.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=CONNECT_S)
    except urllib.error.HTTPError as e:
        if e.code == 416 and have:
            return  # it is all there: only the check was missing
        raise NoConnection(f"{url}: the server answers {e.code} {e.reason}") from e
    except (urllib.error.URLError, OSError) as e:
        raise NoConnection(f"{url}: no connection within {CONNECT_S:.0f} s ({getattr(e, 'reason', e)})") from e
    with answer, to.open("ab") as file:
        if answer.status != 206:
            file.truncate(0)  # the server does not resume: from the beginning
            have = 0
        size = have + int(answer.headers.get("Content-Length") or 0)
        done, told = have, time.monotonic()
        while True:
            try:
                chunk = answer.read(_CHUNK)
            except (OSError, http.client.HTTPException) as e:
                raise NoConnection(f"{url}: broke off after {done} bytes ({e}); the next call goes on there") from e
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            if time.monotonic() - told >= 2 or done == size:
                told = time.monotonic()
                log.info("%s: %d of %d MB", to.name.removesuffix(".part"), done >> 20, size >> 20)
    if done < size:
        raise NoConnection(f"{url}: broke off after {done} of {size} bytes; the next call goes on there")


def _unpack(packed: Path, members: tuple[str, ...], folder: Path) -> None:
    folder.mkdir()
    wanted = set(members)
    with tarfile.open(packed, "r:gz") as tar:
        for member in tar:
            # By base name into one flat folder, so that no path in the archive says where a file goes.
            name = member.name.rsplit("/", 1)[-1]
            file = tar.extractfile(member) if member.isfile() and name in wanted else None
            if file is not None:
                with file, (folder / name).open("wb") as out:
                    shutil.copyfileobj(file, out, _CHUNK)
                wanted.discard(name)
    if wanted:
        raise ValueError(f"{packed.name}: the archive lacks {', '.join(sorted(wanted))}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
