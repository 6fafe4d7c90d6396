"""Runs services from one command and leaves none behind, however the command ends.

    sentinel   adopts orphans; forks the manager, waits, then ends every descendant that is left
      manager  starts services in order of `after`, each when those are ready; restarts what dies; stops in reverse
        service, service, ...   each leads its own process group, writes to its own log, dies with the manager

- On Ctrl-C, SIGTERM and SIGHUP the sentinel asks the manager to stop, which stops the services politely.
- On `kill -9` of the manager, the kernel kills the services (parent-death signal). The sentinel is a subreaper: it has
  adopted what is left, and ends that.
- On `kill -9` of the sentinel, the manager stops the services politely.
- On `kill -9` of both, the services die. Their children are in the state file, and the next `up` or `down` ends them.

Both are single-threaded: the parent-death signal belongs to a thread, and a process with threads must not fork.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from common.disk import hold
from infra.supervise.processes import adopt_orphans, boot, die_with_parent, end, end_descendants, read_json
from infra.supervise.reports import STATE, report

CRASH_GRACE_S = 3.0


def lock(folder: Path) -> IO[str]:
    """The folder's lock, held until it is closed. Raises Busy if a supervisor holds it."""
    return hold(folder / "LOCK", f"{folder} is already running; end it with: minutehand down --name {folder.name}")


def sweep(folder: Path, grace_s: float = CRASH_GRACE_S) -> int:
    """Ends the processes that a sentinel and a manager left when both were killed. The caller holds the lock."""
    state = read_json(folder / STATE)
    left = state.get("processes", ()) if state.get("boot") == boot() else ()
    return end([(pid, start) for pid, start in left], grace_s)


def supervise(folder: Path, prepare: Callable[[], Callable[[], int]]) -> int:
    """The sentinel: runs what `prepare` returns in a forked child, and then ends every descendant.

    Call it from the main thread, before other threads start. It locks the folder, sweeps it, and calls `prepare`.
    Raises Busy if another supervisor runs. Returns the manager's exit code.
    """
    held = lock(folder)
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
        except BaseException as e:  # noqa: B036 - the child must never return into the parent's code
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
    held.close()
    return code
