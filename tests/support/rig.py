"""A replica under test: its folder, its processes, and the lineage that is written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from serving.replica import Down, RefusedCall, Replica
from serving.signatures import RANKER
from tests.support.lineage import PROJECT, SOURCE, TOKEN, Lineage, Process, free_port, until

BASE = 1_000_000_000


def export(log: Path, to: Path, *more: str) -> None:
    command = [sys.executable, "-m", "serving.export", "--source", SOURCE, "--log", str(log), "--to", str(to), *more]
    subprocess.run(command, cwd=PROJECT, check=True, timeout=120)


@dataclass
class Rig:
    """One replica: its folder, the lineage that is written, and the processes of a test."""

    folder: Path
    lineage: Lineage
    port: int = field(default_factory=free_port)
    rest_port: int = field(default_factory=free_port)
    sync_port: int = field(default_factory=free_port)
    running: list[Process] = field(default_factory=list)

    @property
    def models(self) -> Path:
        """The folder of the model in the replica."""
        return self.folder / "models" / RANKER

    @property
    def served(self) -> Path:
        return self.models / "served"

    @property
    def replica(self) -> Replica:
        return Replica(f"127.0.0.1:{self.port}", RANKER)

    def start_server(self, *flags: str) -> Process:
        process = Process(
            self.folder / "server.log", "serving.server.model_server", f"--port={self.port}",
            f"--rest_api_port={self.rest_port}", f"--model_name={RANKER}", f"--model_base_path={self.served}",
            "--file_system_poll_wait_seconds=0.2", *flags,
        )  # fmt: skip
        self.running.append(process)
        return process

    def start_sync(self, token: str | None = TOKEN) -> Process:
        process = Process(
            self.folder / "sync.log", "serving.sync.sync", "--source", SOURCE,
            "--log", f"{RANKER}={self.folder / 'log'}", "--models", str(self.folder / "models"),
            "--serving", f"127.0.0.1:{self.port}",
            "--port", str(self.sync_port), env={"MINUTEHAND_WRITE_TOKEN": token} if token is not None else {},
        )  # fmt: skip
        self.running.append(process)
        return process

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
