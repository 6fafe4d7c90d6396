"""Ends processes so that none is left: by Linux's parent-death signal, subreapers, and a file of (pid, start)."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from common.disk import replace

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: a forked child must not

Identity = tuple[int, int]
"""(pid, start in clock ticks after the machine's own): names one process until the machine starts again.

A pid alone may be used again, and the wall clock may be set.
"""


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def adopt_orphans() -> None:
    """From now on, a descendant whose parent dies becomes this process's child instead of init's, even after setsid."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int) -> Callable[[], None]:
    """A `preexec_fn`: the child gets `signum` when this thread ends. Only the main thread may call it."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a process that dies with its parent must be started from the main thread")
    parent = os.getpid()

    def preexec() -> None:
        _prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return preexec


@contextlib.contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that ends with the block, and with this process. Ctrl-C in the terminal is this process's."""
    tie = die_with_parent(signal.SIGKILL)
    process = subprocess.Popen(command, preexec_fn=tie, process_group=0, **options)
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


class _Stat(NamedTuple):
    state: bytes
    parent: int
    start: int


def _stat(pid: int) -> _Stat | None:
    """What Linux says of a process (proc(5), /proc/pid/stat); None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else _Stat(fields[0], int(fields[1]), int(fields[19]))


def boot() -> str:
    """Names the time since the machine started: a start in ticks means nothing after it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identity(pid: int) -> Identity | None:
    stat = _stat(pid)
    return (pid, stat.start) if stat else None


def alive(who: Identity) -> bool:
    """True if exactly this process lives; a zombie does not."""
    return identity(who[0]) == tuple(who)


def send(who: Identity, signum: int) -> None:
    if alive(who):
        with contextlib.suppress(ProcessLookupError):
            os.kill(who[0], signum)


def descendants(pid: int | None = None) -> list[Identity]:
    """All living descendants of `pid`, or of this process, with those that it adopted."""
    children: dict[int, list[Identity]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))):
            children.setdefault(stat.parent, []).append((int(name), stat.start))
    living = children.get(pid or os.getpid(), [])
    for child in living:  # which grows
        living += children.get(child[0], [])
    return living


def listening(processes: Iterable[Identity]) -> set[tuple[str, int]]:
    """The TCP addresses, as (host, port), that processes listen on."""
    addresses = set()
    for pid, _ in processes:
        with contextlib.suppress(psutil.Error):
            connections = psutil.Process(pid).net_connections("tcp")
            addresses |= {(str(c.laddr.ip), int(c.laddr.port)) for c in connections if c.status == psutil.CONN_LISTEN}
    return addresses


def reap() -> dict[int, int]:
    """pid -> exit code (negative: the signal) of children that have ended, with adopted ones."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def end_descendants(grace_s: float) -> None:
    """Sends TERM to all descendants of this process, and KILL after `grace_s`. Returns when none is left."""
    for who in descendants():
        send(who, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while left := descendants():
        if time.monotonic() >= deadline:
            for who in left:
                send(who, signal.SIGKILL)
        reap()
        time.sleep(0.02)
    reap()


def end(processes: Iterable[Identity], grace_s: float) -> int:
    """Ends processes in the same way, whoever their parents are. Returns how many were alive."""
    left = [who for who in processes if alive(who)]
    for who in left:
        send(who, signal.SIGTERM)
    count, deadline = len(left), time.monotonic() + grace_s
    while left := [who for who in left if alive(who)]:
        if time.monotonic() >= deadline:
            for who in left:
                send(who, signal.SIGKILL)
        time.sleep(0.02)
    return count


def write_json(path: Path, value: Any) -> None:
    """Replaces a file that only its owner can read."""
    replace(path, json.dumps(value, indent=1).encode(), 0o600)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no file."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
        return value
    except (FileNotFoundError, ValueError):
        return {}
