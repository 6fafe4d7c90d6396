"""Waiting for a state, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.support.process import Child

T = TypeVar("T")


def until(holds: Callable[[], T], what: str, seconds: float = 180, process: Child | None = None) -> T:
    """Returns what `holds` returns, once that is true. Its exceptions mean "not yet", its failed assertions fail.

    `process` must live until then: when it has ended, the wait fails at once with its output.
    """
    end, error = time.monotonic() + seconds, None
    while True:
        ended = process is not None and process.code is not None  # before the state: its last act may have made it
        try:
            if state := holds():
                return state
        except AssertionError:
            raise
        except Exception as e:
            error = e
        late = time.monotonic() > end
        if late or ended:
            why = f"the process ended with {process.code}" if process and ended else f"waited {seconds:g} s"
            last = f" (last error: {error!r})" if error else ""
            output = f"\n{process.tail()}" if process else ""
            raise AssertionError(f"{why} for: {what}{last}{output}")
        time.sleep(0.05)
