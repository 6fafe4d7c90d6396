"""A writer of an archive that kills itself with -9 just before the n-th step it takes on the disk, for every n.

python -m tests.streaming.archive.kill_child FOLDER

For n = 0, 1, ... it forks: the child goes on with the archive FOLDER/<n> and is killed, or gets through: exit 3. The
parent prints n and how each one ended. One interpreter for all of them: importing Arrow takes longer than the work.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from streaming.archive.commits import Writer
from tests.streaming.archive.test_archive import DECLARATION, finish


def run(path: Path, kill_at: int) -> None:
    steps = 0

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def killed_before(*args: Any, **options: Any) -> Any:
            nonlocal steps
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            return step(*args, **options)

        return killed_before

    with Writer(path, "test", DECLARATION) as writer:
        for name in ("mkdir", "fsync", "link", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        builtins.open = counted(builtins.open)
        finish(writer)
    os._exit(3)


def main() -> None:
    pa.array([0])  # looks for pandas, which takes a third of a second: here once, then no child does
    for n in range(300):
        pid = os.fork()
        if pid == 0:
            run(Path(sys.argv[1]) / str(n), n)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(n, code, flush=True)
        if code != -signal.SIGKILL:
            return


if __name__ == "__main__":
    main()
