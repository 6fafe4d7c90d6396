"""Runs services from one command and leaves none behind, however it ends itself.

    sentinel   adopts orphans; forks the manager, waits, then ends every descendant that is left
      manager  starts services in order of `after`, each when those are ready; restarts what dies; stops in reverse
        service, service, ...   each leads its own process group, writes to its own log, dies with the manager

Ctrl-C, SIGTERM, SIGHUP: the sentinel asks the manager, which stops politely. `kill -9` of the manager: the kernel kills
the services (parent-death signal), the sentinel what is left, adopted because it is a subreaper. `kill -9` of the
sentinel: the manager stops politely. Of both at once: the services die; their children are in the state file, which
the next `up` or `down` sweeps. Both are single-threaded: the parent-death signal is the thread's, and forks are safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from infra.supervise.manager import STATE, report
from infra.supervise.processes import adopt_orphans, die_with_parent, end, end_descendants, read_json

CRASH_GRACE_S = 3.0


class AlreadyRunning(RuntimeError):
    """Another supervisor holds the folder."""


def lock(folder: Path) -> int | None:
    """The folder's lock, held until the file descriptor is closed; None if a supervisor holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def sweep(folder: Path, grace_s: float = CRASH_GRACE_S) -> int:
    """Ends what a supervisor left that was killed together with its sentinel. Only call it with the lock held."""
    state = read_json(folder / STATE)
    left = [(int(pid), float(created)) for pid, created in state.get("processes", ())]
    return end(left, grace_s) if left else 0


def supervise(folder: Path, prepare: Callable[[], Callable[[], int]]) -> int:
    """The sentinel: runs what `prepare()` returns in a forked child and ends every descendant after it.

    `prepare` is called with the folder locked and swept; what it raises is raised. From the main thread, and before the
    process has others. Raises AlreadyRunning if another one holds the folder. Returns the manager's exit code.
    """
    held = lock(folder)
    if held is None:
        raise AlreadyRunning(f"{folder} is already running; end it with: minutehand down --name {folder.name}")
    if swept := sweep(folder):
        report(f"ended {swept} processes that an earlier run left")
    manager = prepare()
    adopt_orphans()
    sys.stdout.flush()
    tie = die_with_parent(signal.SIGTERM)
    child: list[int] = []

    def forward(signum: int, frame: object) -> None:
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child[0], signal.SIGTERM)

    # Blocked until the child is known and has its own handlers, so that no signal falls between.
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            for signum in signals:
                signal.signal(signum, signal.SIG_DFL)
            tie()
            adopt_orphans()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            code = manager()
        except BaseException as e:  # noqa: B036 - whatever it was, the child must not return into the parent's code
            report(f"the supervisor failed: {type(e).__name__}: {e}")
            raise
        finally:
            sys.stdout.flush()
            os._exit(code)
    child.append(pid)
    for signum in signals:
        signal.signal(signum, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    code = -1
    while code == -1:
        ended, status = os.waitpid(-1, 0)  # adopted orphans too
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            code = 1 if code < 0 else code
    end_descendants(CRASH_GRACE_S)
    os.close(held)
    return code
