"""A writer that kills itself with -9 just before the n-th step it takes on the disk; exits 3 if it gets through.

Reads lines `LOG LINEAGE SEED CHANGES delta|compact N`, forks a writer for each, and prints how the writer ended. One
interpreter starts them all: importing Arrow takes longer than the work.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from delta_log.compaction import compact
from delta_log.log import Log
from delta_log.writer import Writer
from tests.support.log_oracle import Oracle


def run(path: str, lineage: str, seed: str, changes: str, kind: str, kill_at: str) -> None:
    oracle = Oracle(int(seed))
    oracle.whole()
    for _ in range(int(changes)):
        oracle.change()
    steps = 0

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def killed_before(*args: Any, **options: Any) -> Any:
            nonlocal steps
            if steps == int(kill_at):
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            return step(*args, **options)

        return killed_before

    log = Log(path)
    with Writer(log, lineage) as writer:
        for name in ("mkdir", "fsync", "link", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        builtins.open = counted(builtins.open)
        if kind == "delta":
            writer.delta(oracle.change())
        else:
            compact(log, writer)
            writer.prune(1)
    os._exit(3)


def main() -> None:
    pa.array([0])  # looks for pandas, which takes a third of a second: here once, then no writer does
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(*line.split())
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
