"""The processes of the benchmark of serving: model servers, and the clients that ask them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.common.figures import ROOT
from benchmarks.load.client import Call
from benchmarks.load.lineage import LINEAGE, SOURCE
from common.errors import InputError
from serving.replica import Down, Replica
from serving.signatures import RANKER
from tests.support.ports import free_port

TOKEN = "the benchmark's"
START_S = 120.0
OURS = [sys.executable, "-m", "serving.server.model_server"]


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ends the process with the block."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Contestant:
    """A model server: its name, the words that start it, and the checkout whose code exports its model to `served`."""

    name: str
    command: list[str]
    checkout: Path
    served: Path
    version: int = 0

    def export(self, log: Path) -> None:
        """Writes the base of the log as a SavedModel."""
        command = [sys.executable, "-m", "serving.export", "--source", SOURCE, "--log", str(log), "--lineage", LINEAGE]
        done = subprocess.run(
            [*command, "--seq", "0", "--to", str(self.served)],
            cwd=self.checkout, env=self._environment(), capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise InputError(f"serving.export of {self.checkout} ended with {done.returncode}: {done.stderr[-500:]}")
        (folder,) = self.served.iterdir()
        (folder / "assets" / "token").write_text(TOKEN)
        self.version = int(folder.name)

    @contextmanager
    def started(self) -> Iterator[Server]:
        """Starts it. The block begins when its version is AVAILABLE."""
        port, rest_port = free_port(), free_port()
        flags = {"port": port, "rest_api_port": rest_port, "model_name": RANKER, "model_base_path": self.served}
        words = [*self.command, *(f"--{flag}={value}" for flag, value in flags.items())]
        log = self.served.with_name("log")
        begin = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                words, cwd=self.checkout, env=self._environment(), stdout=output, stderr=output, text=True
            )
        with ended(process):
            while not _available(port):
                if process.poll() is not None or time.monotonic() - begin > START_S:
                    raise InputError(f"{self.name} serves no version: {log.read_text()[-500:]}")
                time.sleep(0.01)
            seconds = time.monotonic() - begin
            yield Server(process.pid, f"127.0.0.1:{port}", f"127.0.0.1:{rest_port}", seconds)

    def _environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.checkout), "TF_CPP_MIN_LOG_LEVEL": "2"}


def _available(port: int) -> bool:
    """True if a version is AVAILABLE. A channel that was made before the port is open would wait to try again."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        replica = Replica(f"127.0.0.1:{port}", RANKER)
        try:
            return bool(replica.versions()[0])
        except Down:
            return False
        finally:
            replica.close()
    return False


@dataclass
class Server:
    """A model server that runs: its addresses, and the seconds from its start until its version was AVAILABLE."""

    pid: int
    grpc: str
    rest: str
    available_s: float

    def resident(self) -> int:
        """The resident bytes of the server and its child processes."""
        process = psutil.Process(self.pid)
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))


class Clients:
    """`number` client processes (benchmarks/load/client.py) of one kind. All of them ask from `go` on until `calls`."""

    def __init__(self, number: int, kind: str, address: str, rows: int) -> None:
        command = [sys.executable, "-m", "benchmarks.load.client", kind, address, str(rows)]
        pipe = subprocess.PIPE
        self._processes = [
            subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(number)
        ]

    def go(self) -> None:
        """Waits until each has got an answer, and lets them begin."""
        for process in self._processes:
            assert process.stdout and process.stdin
            if process.stdout.readline() != "ready\n":
                raise InputError(f"a client of the benchmark ended with {process.wait()}")
        for process in self._processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()

    def calls(self) -> list[Call]:
        """Ends them, and returns the requests that they sent."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        return [Call(*call) for p in self._processes if p.stdout for call in json.loads(p.stdout.read())]

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
