"""A Kafka broker of one test: KRaft, one node, free ports, its files in a folder that is thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support import PROJECT

LIBS = PROJECT / "build" / "kafka" / "libs"
READY_S = 60
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={folder}/logs
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


class Broker:
    """`with Broker() as broker:` starts it and waits until it listens at `broker.bootstrap`."""

    def __init__(self) -> None:
        if not LIBS.is_dir():
            raise FileNotFoundError(f"{LIBS} is missing: `make setup` fetches Kafka")
        self.folder = Path(tempfile.mkdtemp(prefix="minutehand-broker-"))
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.config = self.folder / "server.properties"
        self.config.write_text(PROPERTIES.format(port=self.port, controller=free_port(), folder=self.folder))
        self.log = self.folder / "broker.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Broker:
        java = ["java", "-Xms256m", "-Xmx512m", "-cp", f"{LIBS}/*"]
        form = ["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAA", "-c", str(self.config)]
        with self.log.open("wb") as log:
            subprocess.run([*java, *form], check=True, stdout=log, stderr=log, timeout=READY_S)
            self.process = subprocess.Popen([*java, "kafka.Kafka", str(self.config)], stdout=log, stderr=log)
        deadline = time.monotonic() + READY_S
        while not answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the broker does not come up:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
