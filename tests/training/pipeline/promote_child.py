"""A `warm_start promote` that kills itself with -9 when it has learned to the head, before SERVING moves.

python -m tests.training.pipeline.promote_child ARGUMENTS
"""

from __future__ import annotations

import os
import signal
import sys

from delta_log.log import Log
from training.pipeline import warm_start


def main() -> None:
    Log.serve = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    sys.exit(warm_start.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
