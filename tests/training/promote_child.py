"""`python -m training.warm_start promote ...` that kills itself with -9 when it has learned to the head, before SERVING
moves: python promote_child.py ARGUMENTS."""

from __future__ import annotations

import os
import signal
import sys

from training import warm_start
from training.delta import Log


def main() -> None:
    Log.serve = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    sys.exit(warm_start.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
