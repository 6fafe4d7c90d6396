"""The join job as a process of a test: started from build/, killed, started again."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support import PROJECT, replay
from tests.support.ports import free_port
from tests.support.process import Child
from tests.support.wait import until

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
        named |= replay.SETTINGS
        self.settings = {"bootstrap": bootstrap, "declaration": json.loads(declaration), **named, **settings}

    def start(self) -> None:
        self.file.write_text(json.dumps(self.settings))
        options = [
            f"@{PROJECT / 'streaming/join/jvm.options'}",
            "-Xmx768m",
            "-cp",
            f"{PROJECT / 'build/flink/libs'}/*:{JAR}",
        ]
        self.process = Child(self.log, "java", *options, f"minutehand.join.{self.main}", str(self.file))

    def ready(self) -> None:
        """Waits until Flink says that the job runs."""
        until(self.runs, "the join runs", READY_S, self.process)

    def runs(self) -> bool:
        return any(task["status"] == "RUNNING" for task in self.rest("/jobs").get("jobs", []))

    def rest(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return dict(json.load(answer))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return {}
