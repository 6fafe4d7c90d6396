"""Kafka as one KRaft node on this machine: its settings file and its two commands."""

from __future__ import annotations

import base64
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

from infra.settings import PROJECT, Settings
from streaming import topics

LIBS = PROJECT / "build/kafka/libs"


def cluster_id(folder: Path) -> str:
    """The id of the cluster whose data are in `folder`; empty before there are any."""
    file = folder / "data/meta.properties"
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition("=")[2] for line in lines if line.startswith("cluster.id=")), "")


def java() -> str:
    home = os.environ.get("JAVA_HOME")
    return f"{home}/bin/java" if home else "java"


def properties(settings: Settings, folder: Path, port: int, controller_port: int) -> dict[str, object]:
    """The lines of server.properties. Every internal topic has one replica: there is one node."""
    advertised = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        # The voter is a setting, not a record of the log: its port may change with the next start.
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{settings.host}:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{advertised}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": folder / "data",
        "auto.create.topics.enable": "false",
        "num.partitions": settings.partitions,
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "group.initial.rebalance.delay.ms": 0,
        "log.retention.ms": round(settings.kafka_retention * 1000),
        "log.retention.bytes": settings.kafka_retention_bytes,
        "log.segment.bytes": topics.segment_bytes(settings.kafka_retention_bytes),
        "log.retention.check.interval.ms": 10_000,
        # After kill -9 the node may register again when its old session has ended.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
    }


JAVA_ENVIRONMENT = {"LC_ALL": "C.UTF-8"}
"""With another locale Java cannot open a path that is not ASCII."""


def write_properties(file: Path, properties: Mapping[str, object]) -> None:
    """Writes a file as java.util.Properties reads it: Latin-1, and escapes for backslashes and all other characters."""
    text = "".join(f"{key}={value}\n" for key, value in properties.items()).replace("\\", "\\\\")
    units = text.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2))
    file.write_text("".join(chr(code) if code < 0x7F else f"\\u{code:04x}" for code in codes))


def _java(main: str, memory: int) -> list[str]:
    log4j = PROJECT / "infra/kafka/log4j2.properties"
    heap = [f"-Xms{memory >> 11}k", f"-Xmx{memory >> 10}k", "-XX:+ExitOnOutOfMemoryError"]
    return [java(), *heap, f"-Dlog4j2.configurationFile={log4j}", "-cp", f"{LIBS}/*", main]


def format_command(file: Path) -> list[str]:
    """Makes the folder of a new cluster, with an id at random (16 bytes in base64, as Kafka writes them)."""
    tool = _java("kafka.tools.StorageTool", 128 << 20)
    cluster = base64.urlsafe_b64encode(b"m" + secrets.token_bytes(15)).decode().rstrip("=")
    return [*tool, "format", "--ignore-formatted", "-t", cluster, "-c", str(file)]


def command(settings: Settings, file: Path) -> list[str]:
    return [*_java("kafka.Kafka", settings.kafka_memory), str(file)]
