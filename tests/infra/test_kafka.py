"""The platform with a real broker: started, written to, killed, started again, ended; and gone with its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped]

from infra import kafka_server
from infra.platform import Platform, PlatformError
from infra.ports import PORTS
from infra.settings import Settings
from tests.support.process import Child
from tests.support.wait import until

pytestmark = pytest.mark.e2e
# A source of its own: the broker's test must not wait for another part's module.
SOURCE = """
from streaming.declaration import Declaration, Feature
declaration = Declaration("small", (Feature("user", "id"),), ("click",), "click", 1000)
def history():
    yield from ()
live = history
"""
CALLER = """
import sys, time
from infra import kafka_server
from infra.platform import Platform
from infra.settings import load
platform = Platform(load(None, sys.argv[1:]))
platform.start(["kafka"])
print("up", flush=True)
time.sleep(600)
"""


def flags(tmp: Path) -> dict[str, str]:
    (tmp / "small.py").write_text(SOURCE)
    free = {port: "0" for port in PORTS}
    return {"var": str(tmp / "var"), "source": str(tmp / "small.py"), "kafka_memory": "256m", "mlflow": "false", **free}


def processes(tmp: Path) -> list[str]:
    """Command lines of what still runs for the test's folder."""
    found = []
    for p in psutil.process_iter():
        try:
            line = " ".join(p.cmdline())
            if str(tmp) in line and p.pid != os.getpid() and p.status() != psutil.STATUS_ZOMBIE:
                found.append(line)
        except psutil.Error:
            pass
    return found


def wait_gone(tmp: Path) -> None:
    until(lambda: not processes(tmp), f"no process of {tmp} is left", 30)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform(Settings().with_(**flags(tmp_path))) as platform:
        yield platform
    wait_gone(tmp_path)


def send(platform: Platform, texts: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=platform.address("kafka"))
    try:
        for text in texts:
            producer.send("actions", text, partition=0).get(timeout=60)
    finally:
        producer.close()


def read(platform: Platform, count: int) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=platform.address("kafka"), auto_offset_reset="earliest")
    try:
        consumer.assign([TopicPartition("actions", 0)])
        messages: list[bytes] = []
        deadline = time.monotonic() + 60
        while len(messages) < count and time.monotonic() < deadline:
            messages += [m.value for batch in consumer.poll(timeout_ms=500).values() for m in batch]
        return messages
    finally:
        consumer.close()


def test_a_killed_broker_comes_back_with_what_it_had(platform: Platform) -> None:
    platform.start(["topics"])
    on = [name for name, service in platform.state()["services"].items() if service["state"] != "off"]
    assert on == ["kafka-format", "kafka", "topics"]
    host, _, port = platform.address("kafka").partition(":")
    assert host == "127.0.0.1"
    listening = {
        c.laddr for p in (psutil.Process(platform.pid("kafka")),) for c in p.net_connections() if c.status == "LISTEN"
    }
    assert int(port) in {a.port for a in listening}
    assert {a.ip.removeprefix("::ffff:") for a in listening} == {"127.0.0.1"}  # nobody else can reach it

    send(platform, [b"1", b"2"])
    pid = platform.kill("kafka")
    platform.wait(lambda: platform.restarts("kafka") == 1 and platform.ready("kafka"))
    assert platform.pid("kafka") != pid
    send(platform, [b"3"])
    assert read(platform, 3) == [b"1", b"2", b"3"]

    platform.restart("kafka")
    assert platform.restarts("kafka") == 2
    platform.stop()
    assert not platform.is_running()

    # Another start, on the same ports: what was written is there, nothing is formatted again.
    address = platform.address("kafka")
    platform.start(["topics"])
    assert platform.address("kafka") == address
    assert platform.service("kafka-format")["ready_s"] == 0
    assert read(platform, 3) == [b"1", b"2", b"3"]


def test_the_command_line(tmp_path: Path) -> None:
    sets = [part for name, value in flags(tmp_path).items() for part in ("--set", f"{name}={value}")]

    def minutehand(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "infra.cli.main", *words, *sets], capture_output=True, text=True, timeout=200
        )
        return done.returncode, done.stdout + done.stderr

    code, said = minutehand("status")
    assert code == 3 and "start it with: minutehand up" in said
    code, said = minutehand("up", "--detach", "--only", "kafka")
    try:
        assert code == 0 and "127.0.0.1:" in said, said
        code, said = minutehand("status")
        assert code == 0 and "kafka " in said and "ready" in said
        code, said = minutehand("up")
        assert code == 2 and "is already running" in said
        code, said = minutehand("restart", "kafka")
        assert code == 0 and "kafka is ready again after" in said
        code, said = minutehand("restart", "kafak")
        assert code == 2 and "no service 'kafak'; allowed are kafka-format, kafka" in said
        code, said = minutehand("logs", "kafka", "-n", "1")
        assert code == 0 and len(said.splitlines()) == 1
        code, said = minutehand("logs", "nobody")
        assert code == 2 and "allowed are kafka, kafka-format, supervisor" in said
    finally:
        code, said = minutehand("down")
    assert (code, said) == (0, "stopped\n")
    assert minutehand("down") == (0, "it was not running\n")
    wait_gone(tmp_path)


def test_two_platforms_that_start_at_once_share_nothing(tmp_path: Path) -> None:
    """Both want the default ports."""
    (tmp_path / "small.py").write_text(SOURCE)
    given = {"source": str(tmp_path / "small.py"), "kafka_memory": "256m", "mlflow": "false"}
    platforms = [Platform(Settings().with_(var=str(tmp_path), name=name, **given)) for name in ("one", "other")]
    sets = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "infra.cli.main", "up", "--set", f"var={tmp_path}", *sets, "--only", "topics"]
    ups = [Child(tmp_path / f"{p.folder.name}.log", *command, "--name", p.folder.name) for p in platforms]
    try:
        for platform, up in zip(platforms, ups, strict=True):
            until(lambda p=platform: p.state().get("ready"), "it is ready", 120, up)
            send(platform, [platform.folder.name.encode()])
        addresses = [set(platform.facts()["ports"].values()) for platform in platforms]
        assert not addresses[0] & addresses[1]
        assert [read(platform, 1) for platform in platforms] == [[b"one"], [b"other"]]
        ids = {kafka_server.cluster_id(platform.layout.kafka) for platform in platforms}
        assert len(ids) == 2 and "" not in ids
    finally:
        for up in ups:
            up.end()
    wait_gone(tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_caller(tmp_path: Path, signum: int) -> None:
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    words = [f"{name}={value}" for name, value in flags(tmp_path).items()]
    with Child(tmp_path / "log", sys.executable, str(script), *words) as caller:
        until(lambda: "up" in caller.text().splitlines(), "the broker is up", process=caller)
        assert any("kafka.Kafka" in line for line in processes(tmp_path))
        caller.send(signum)
        caller.wait(30)
    wait_gone(tmp_path)


def test_a_start_that_cannot_be_is_explained(tmp_path: Path) -> None:
    settings = Settings().with_(**flags(tmp_path))
    with pytest.raises(
        PlatformError, match="there is no service 'kafak'; allowed are kafka-format, kafka, topics, join"
    ):
        Platform(settings).start(["kafak"])
    with pytest.raises(PlatformError, match="source is 'nowhere', which cannot be loaded"):
        Platform(settings.with_(source="nowhere")).start(["kafka"])
    wait_gone(tmp_path)
