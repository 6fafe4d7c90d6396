"""A service and its run: what a manager is told to keep running, and what it knows of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from infra.supervise.processes import Identity, die_with_parent


@dataclass(frozen=True)
class Service:
    """A command, the conditions of its start, and a check that it is ready.

    - `after`: the services that must be ready (or done) before its first start.
    - `needs`: services that start when this one does, in any order.
    - `when`: returns what it still waits for, or "".
    - `ready`: a check of infra.supervise.checks. The manager ends a service that was ready and is silent for a minute.
      It also ends one that starts and reports no new reason for a time. So a long start must report its progress.
    - `ports`: those that it listens on. It is not ready before it does: whoever answers there may be another process.
    - `prepare`: is called before each start.
    - `folder`: its working directory.
    - `once`: the service runs to exit 0 and is done. `unless`: it is done without running.
    - `nice`: how far it gives way to other services.
    """

    name: str
    command: Sequence[str]
    after: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    ready: Callable[[], str] = lambda: ""
    ports: tuple[int, ...] = ()
    when: Callable[[], str] = lambda: ""
    prepare: Callable[[], None] = lambda: None
    once: bool = False
    unless: Callable[[], bool] = lambda: False
    env: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    address: str = ""
    nice: int = 0

    def launch(self, output: Path) -> int:
        """Starts the process, and returns its pid. Its end must be waited for by `reap`. Raises OSError or ValueError.

        The output is a file, not a pipe: the service can write it when no other process lives. It is appended to, so
        that the service continues at the new end when the log is cut.
        """
        tie = die_with_parent(signal.SIGKILL)

        def prologue() -> None:
            tie()
            os.nice(self.nice)

        with output.open("ab") as log:
            process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.env},
                process_group=0,  # Ctrl-C in the terminal is the sentinel's
                preexec_fn=prologue,  # noqa: PLW1509 - single-threaded
            )
        process.returncode = 0
        return process.pid


@dataclass
class Run:
    """The state of a service: off (until `start` asks for it), waiting, starting, ready, unhealthy (was ready, but its
    check complains now), done, dead (the manager will start it again), or stopped."""

    service: Service
    state: str = "waiting"
    reason: str = ""
    process: Identity | None = None
    restarts: int = 0
    deaths: int = 0
    began: float = 0.0
    ready_s: float = 0.0
    next_start: float = 0.0
    next_check: float = 0.0
    silent_since: float = 0.0
    news_at: float = 0.0  # when this start reported a reason for the first time
    reasons: set[str] = field(default_factory=set)  # those that this start has reported
    kill_at: float = 0.0  # when a service that was asked to end gets KILL
    restart_requested: bool = False  # the next end is no death
    given_up: bool = False
    family: list[Identity] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        pid = self.process[0] if self.process else None
        return {
            "state": self.state,
            "pid": pid,
            "restarts": self.restarts,
            "reason": self.reason,
            "ready_s": round(self.ready_s, 1),
            "address": self.service.address,
        }


def select(services: list[Service], only: tuple[str, ...]) -> set[str]:
    """The names in `only`, and of the services that those come after or need; all if `only` is empty.

    Raises InputError.
    """
    named = {s.name: s for s in services}
    if wrong := [name for name in only if name not in named]:
        raise InputError(f"there is no service {wrong[0]!r}; allowed are {', '.join(named)}")
    wanted: set[str] = set()
    queue = list(only or named)
    while queue:
        if (name := queue.pop()) not in wanted:
            wanted.add(name)
            queue += (*named[name].after, *named[name].needs)
    return wanted
