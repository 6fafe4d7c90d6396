"""Child processes of a test: each has its output in a file, and none outlives its test.

trainer = Process(tmp_path / "trainer.log", "training.learn.online", "--source", SOURCE)
until(lambda: manifests(), "a delta", process=trainer)
assert trainer.end() == 0, trainer.tail()
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support import PROJECT

running: set[Child] = set()
"""All children that nobody has waited for; tests/conftest.py kills those that a test leaves."""


class Child:
    """A command as a child process; it starts at once. `with` kills it at the end, if it still runs."""

    def __init__(self, output: Path, *command: str, **options: Any) -> None:
        """`output` is appended to, so that several runs may share it; `options` are those of Popen."""
        self.output = output
        with output.open("ab") as out:
            self._popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **options)
        running.add(self)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._popen.poll()

    def wait(self, seconds: float = 60) -> int:
        code = self._popen.wait(seconds)
        running.discard(self)
        return code

    def send(self, number: int) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Asks it to end. Returns its exit code."""
        self.send(number)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def text(self) -> str:
        return self.output.read_text()

    def tail(self) -> str:
        return self.text()[-4000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Process(Child):
    """A module of ours as a child process. It does not inherit a write token."""

    def __init__(
        self, output: Path, module: str, *arguments: str, env: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "MINUTEHAND_WRITE_TOKEN"} | dict(env or {})
        command = (sys.executable, "-m", module, *arguments)
        super().__init__(output, *command, cwd=PROJECT, env=environment, **options)
