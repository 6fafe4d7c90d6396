"""A Kafka broker of one test: KRaft, one node, free ports, its files in a folder that is thrown away."""

from __future__ import annotations

import atexit
import functools
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.support import PROJECT
from tests.support.ports import free_port
from tests.support.process import Child
from tests.support.wait import until

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


JAVA = ("java", "-Xms256m", "-Xmx512m", "-cp", f"{LIBS}/*")


@functools.cache
def formatted() -> Path:
    """The files of a broker that has never run. All brokers begin with copies: a JVM must start to make them."""
    folder = Path(tempfile.mkdtemp(prefix="minutehand-broker-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = folder / "server.properties"
    config.write_text(PROPERTIES.format(port=1, controller=2, folder=folder))
    form = ["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAA", "-c", str(config)]
    subprocess.run([*JAVA, *form], check=True, capture_output=True, timeout=READY_S)
    return folder / "logs"


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

    def __enter__(self) -> Broker:
        shutil.copytree(formatted(), self.folder / "logs")
        self.process = Child(self.log, *JAVA, "kafka.Kafka", str(self.config))
        until(lambda: answers(self.port), "the broker listens", READY_S, self.process)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # nothing of it is kept
        shutil.rmtree(self.folder, ignore_errors=True)
