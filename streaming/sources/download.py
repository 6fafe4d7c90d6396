"""Downloads a data set's official archive into the cache, once. It resumes a broken download and checks the checksum.

The cache is MINUTEHAND_CACHE, else ~/.cache/minutehand. The sum of the archive is its publisher's. The sums of its
files are taken when it is unpacked, and kept beside them in SHA256SUMS. `check` compares files with such a list.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from common import process
from common.disk import made_once

CONNECT_S = 10.0
SUMS = "SHA256SUMS"
_CHUNK = 1 << 20

log = process.logger("download")


class NoConnection(ValueError):
    """The archive's host cannot be reached, or stopped answering. A demo then uses the simulator.

    It is a ValueError, like every error of a source, so a command reports it in one line.
    """


class Archive(NamedTuple):
    """A .tar.gz on the network: the members to extract, its licence and its citation."""

    name: str
    url: str
    md5: str
    members: tuple[str, ...]
    licence: str
    citation: str


def cache() -> Path:
    return Path(os.environ.get("MINUTEHAND_CACHE") or "~/.cache/minutehand").expanduser()


def fetch(archive: Archive, folder: Path | None = None) -> Path:
    """Returns the folder that holds the archive's members. Downloads the archive first if the folder is missing.

    Raises NoConnection, or ValueError if the file has another checksum. It then removes the file, and the next call
    begins anew.
    """
    root = cache() if folder is None else folder
    target = root / archive.name
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    log.info("%s: %s. Licence: %s", archive.name, archive.citation, archive.licence)
    packed = root / (archive.url.rsplit("/", 1)[-1] + ".part")
    _download(archive.url, packed)
    md5 = _sum(packed, "md5")
    if md5 != archive.md5:
        packed.unlink()
        raise ValueError(f"{archive.url}: md5 is {md5}, expected is {archive.md5}; removed, try again")
    try:
        with made_once(target) as aside:
            _unpack(packed, archive.members, aside)
            lines = [f"{_sum(aside / name)}  {name}\n" for name in sorted(archive.members)]
            (aside / SUMS).write_text("".join(lines))
    except OSError:
        if not target.is_dir():  # else another process was first
            raise
    packed.unlink(missing_ok=True)
    return target


def _download(url: str, to: Path) -> None:
    have = to.stat().st_size if to.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=CONNECT_S)
    except urllib.error.HTTPError as e:
        if e.code == 416 and have:
            return  # the file is complete; only the check was missing
        raise NoConnection(f"{url}: the server answers {e.code} {e.reason}") from e
    except (urllib.error.URLError, OSError) as e:
        raise NoConnection(f"{url}: no connection within {CONNECT_S:.0f} s ({getattr(e, 'reason', e)})") from e
    with answer, to.open("ab") as file:
        if answer.status != 206:
            file.truncate(0)  # the server does not resume: from the beginning
            have = 0
        size = have + int(answer.headers.get("Content-Length") or 0)
        done, reported_at = have, time.monotonic()
        while True:
            try:
                chunk = answer.read(_CHUNK)
            except (OSError, http.client.HTTPException) as e:
                raise NoConnection(f"{url}: broke off after {done} bytes ({e}); the next call continues there") from e
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            if time.monotonic() - reported_at >= 2 or done == size:
                reported_at = time.monotonic()
                log.info("%s: %d of %d MB", to.name.removesuffix(".part"), done >> 20, size >> 20)
    if done < size:
        raise NoConnection(f"{url}: broke off after {done} of {size} bytes; the next call continues there")


def _unpack(packed: Path, members: tuple[str, ...], folder: Path) -> None:
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


def _sum(path: Path, kind: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def check(paths: Iterable[Path]) -> None:
    """Compares files with SHA256SUMS (the format of `sha256sum`) beside them or one folder above, if that lists them.

    Raises ValueError, which names the file and both sums.
    """
    for path in paths:
        for sums in (path.parent / SUMS, path.parent.parent / SUMS):
            expected = _listed(sums).get(path)
            if expected and expected != (sha256 := _sum(path)):
                raise ValueError(
                    f"{path}: sha256 is {sha256}, expected is {expected} by {sums}; fetch or copy the file again"
                )


def _listed(sums: Path) -> dict[Path, str]:
    """The sha256 of each file that a list names."""
    if not sums.is_file():
        return {}
    lines = (line.partition(" ") for line in sums.read_text().splitlines())
    return {sums.parent / name.lstrip(" *"): sha256 for sha256, _, name in lines}
