"""A replica under test: its folder, its processes, and the lineage that is written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from serving.replica import Down, RefusedCall, Replica
from serving.signatures import RANKER
from tests.support import PROJECT
from tests.support.lineage import SOURCE, TOKEN, Lineage
from tests.support.ports import free_port
from tests.support.process import Process, running
from tests.support.wait import until

BASE = 1_000_000_000
OPTIMISED = "after_MetaOptimizer"
"""In a line of TensorFlow's log for each graph that it has optimised, with LOGGED in the environment."""
LOGGED = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "meta_optimizer=1"}


def export(log: Path, to: Path, *more: str) -> None:
    command = [sys.executable, "-m", "serving.export", "--source", SOURCE, "--log", str(log), "--to", str(to), *more]
    subprocess.run(command, cwd=PROJECT, check=True, timeout=120)


@dataclass
class Rig:
    """One replica: its folder, the lineage that is written, and the processes of a test."""

    folder: Path
    lineage: Lineage
    model: str = RANKER
    port: int = field(default_factory=free_port)
    rest_port: int = field(default_factory=free_port)
    sync_port: int = field(default_factory=free_port)

    @property
    def models(self) -> Path:
        """The folder of the model in the replica."""
        return self.folder / "models" / self.model

    @property
    def served(self) -> Path:
        return self.models / "served"

    @property
    def replica(self) -> Replica:
        return Replica(f"127.0.0.1:{self.port}", self.model)

    def start_server(self, *flags: str) -> Process:
        return Process(
            self.folder / "server.log", "serving.server.model_server", f"--port={self.port}",
            f"--rest_api_port={self.rest_port}", f"--model_name={self.model}", f"--model_base_path={self.served}",
            "--file_system_poll_wait_seconds=0.2", *flags,
        )  # fmt: skip

    def start_sync(self, token: str | None = TOKEN) -> Process:
        return Process(
            self.folder / "sync.log", "serving.sync.sync", "--source", SOURCE,
            "--log", f"{self.model}={self.folder / 'log'}", "--models", str(self.folder / "models"),
            "--serving", f"127.0.0.1:{self.port}",
            "--port", str(self.sync_port), env={"MINUTEHAND_WRITE_TOKEN": token} if token is not None else {},
        )  # fmt: skip

    def seq(self, version: int = BASE) -> int:
        """Where it stands; -1 while nobody says."""
        try:
            return self.replica.status(version).seq
        except (Down, RefusedCall):
            return -1

    def stands_at(self, seq: int, version: int = BASE) -> None:
        until(lambda: self.seq(version) == seq, f"version {version} at seq {seq}", 90)

    def log_bases(self) -> list[int]:
        return self.lineage.log.seqs(self.lineage.name, "base")

    def digest(self, version: int = BASE) -> dict[str, int]:
        return {name: int(value) for name, value in self.replica.digest(version).items()}


class SharedServer:
    """One model server for several tests, since it needs seconds to start: each test has a model of its own there."""

    def __init__(self, folder: Path, models: int = 12) -> None:
        self._folder, self._port = folder, free_port()
        self._unused = [f"model-{i}" for i in range(models)]
        paths = {name: folder / name / "models" / name / "served" for name in self._unused}
        config = "".join(f'config {{ name: "{name}" base_path: "{path}" }}' for name, path in paths.items())
        (folder / "models.config").write_text(f"model_config_list {{ {config} }}")
        self.start()

    def start(self) -> None:
        """Starts the server, again after a test has killed it. It runs until the file's fixture ends it."""
        self.process = Process(
            self._folder / "server.log", "serving.server.model_server", f"--port={self._port}",
            f"--model_config_file={self._folder / 'models.config'}", "--file_system_poll_wait_seconds=0.2", env=LOGGED,
        )  # fmt: skip
        running.discard(self.process)  # else it would be killed at the end of the test that starts it

    def optimised(self) -> int:
        """How many graphs it has optimised."""
        return self.process.text().count(OPTIMISED)

    def rig(self, prepared: Path, lineage: Lineage, *, installed: bool = True) -> Rig:
        """A copy of what was prepared, as a new model of this server. `installed`: its base is there already."""
        if self.process.code is not None:
            self.start()
        model = self._unused.pop()
        folder, copy = self._folder / model, self._folder / f"{model}.copy"
        shutil.copytree(prepared, copy)
        (copy / "models" / RANKER).rename(copy / "models" / model)
        if not installed:
            shutil.rmtree(copy / "models" / model / "served")
        copy.rename(folder)  # complete, since the server looks at it
        return Rig(folder, lineage.copy(folder / "log"), model, self._port)
