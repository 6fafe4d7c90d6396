"""A writer that kills itself with -9 just before the n-th step it takes on the disk; exits 3 if it gets through.

python -m tests.delta_log.kill_child LOG LINEAGE SEED CHANGES delta|compact N
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from delta_log.compaction import compact
from delta_log.log import Log
from delta_log.writer import Writer
from tests.support.log_oracle import Oracle


def main() -> None:
    path, lineage, seed, changes, act, kill_at = sys.argv[1:]
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
        if act == "delta":
            writer.delta(oracle.change())
        else:
            compact(log, writer)
            writer.prune(1)
    os._exit(3)


if __name__ == "__main__":
    main()
