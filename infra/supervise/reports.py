"""What a supervisor prints, and the files that others read: its state and the logs of its services."""

from __future__ import annotations

import contextlib
from pathlib import Path

STATE = "state.json"
"""The file in which a manager describes its services."""

TAIL_LINES = 30


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log."""
    if not path.is_file():
        return ""
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - 64 * 1024))
        return "\n".join(f.read().decode(errors="replace").splitlines()[-lines:])


def report(text: str) -> None:
    """Prints a line. The manager must stop properly when the terminal is gone."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)
