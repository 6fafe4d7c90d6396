"""The join job as a process of a test: started from build/, killed, started again."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support import PROJECT
from tests.support.broker import free_port

JAR = PROJECT / "build" / "join.jar"
READY_S = 120


class JoinProcess:
    """One job over its settings; `start` may be called again after `kill` or `stop`."""

    def __init__(self, folder: Path, declaration: str, bootstrap: str, main: str = "JoinJob", **settings: Any) -> None:
        if not JAR.is_file():
            raise FileNotFoundError(f"{JAR} is missing: `make setup` builds the join job")
        folder.mkdir(parents=True, exist_ok=True)
        self.main, self.port, self.log, self.file = main, free_port(), folder / "join.log", folder / "join.json"
        named = {"state_dir": str(folder / "state"), "rest_port": self.port, "checkpoint_ms": 200, "source": "test"}
        self.settings = {"bootstrap": bootstrap, "declaration": json.loads(declaration), **named, **settings}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.file.write_text(json.dumps(self.settings))
        options = [
            f"@{PROJECT / 'streaming/join/jvm.options'}",
            "-Xmx768m",
            "-cp",
            f"{PROJECT / 'build/flink/libs'}/*:{JAR}",
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["java", *options, f"minutehand.join.{self.main}", str(self.file)], stdout=log, stderr=log
            )

    def ready(self) -> None:
        """Waits until Flink says that the job runs."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            self.check()
            if any(task["status"] == "RUNNING" for task in self.rest("/jobs").get("jobs", [])):
                return
            time.sleep(0.2)
        raise TimeoutError(f"the join does not run after {READY_S} s:\n{self.tail()}")

    def rest(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return dict(json.load(answer))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return {}

    def check(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the join ended with {self.process.returncode}:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text()[-4000:] if self.log.exists() else ""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
