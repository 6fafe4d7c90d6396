"""The names of a platform's services, their folders and their addresses."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.ports import of_replica
from infra.settings import Settings
from serving.signatures import FROZEN


def url_host(host: str) -> str:
    """`host` as a client writes it: the wildcard is reached over loopback, IPv6 goes in brackets."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def model_server(i: int) -> str:
    return f"model-server-{i}"


def rest(i: int) -> str:
    """The name of a model server's second address."""
    return f"model-server-{i}-rest"


def sync(i: int) -> str:
    return f"sync-{i}"


class Layout:
    """The folders and files of a platform."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.folder
        self.kafka = self.folder / "kafka"
        self.join = self.folder / "join"
        self.mlflow = self.folder / "mlflow"
        self.airflow = self.folder / "airflow"
        self.log = self.folder / "log"
        self.models = self.folder / "models"
        self.archive = self.folder / "archive"
        self.features = self.folder / "features"
        self.samples = self.folder / "samples"
        self.data_docs = self.folder / "data_docs"
        self.token = self.folder / "token"
        self.facts = self.folder / "platform.json"

    def folders(self) -> dict[str, str]:
        """The folders that a DAG reads, for platform.json."""
        names = ("folder", "log", "models", "archive", "features", "samples", "data_docs")
        return {name: str(getattr(self, name)) for name in names}

    def replica(self, i: int) -> Path:
        return self.models / f"replica-{i}"

    def served(self, i: int) -> Path:
        """The versions that sync installs for the model server of a replica."""
        return self.replica(i) / "served"

    def frozen(self, i: int) -> Path:
        """The copy of the base that no delta changes; only a demo has one."""
        return self.replica(i) / FROZEN

    def confirmations(self, i: int) -> Path:
        """A line for each delta that a replica has confirmed."""
        return self.replica(i) / "sync.jsonl"

    def make(self, replicas: int) -> None:
        own = (self.kafka / "data", self.join / "state", self.join / "tmp")
        served = [self.served(i) for i in range(replicas)]
        for folder in (*own, self.mlflow, self.log, self.data_docs, *served):
            folder.mkdir(parents=True, exist_ok=True)

    def write_token(self) -> str:
        """The secret without which a model server's write signatures refuse; made once, readable by its owner only."""
        if not self.token.is_file():
            with open(os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
                f.write(secrets.token_hex(32))
        return self.token.read_text()


def addresses(settings: Settings, ports: Mapping[str, int]) -> dict[str, str]:
    """Service -> where it answers. A model server has two: gRPC, and `rest(i)`."""
    host = url_host(settings.host)
    answers = {
        "kafka": f"{host}:{ports['kafka_port']}",
        "join": f"http://{host}:{ports['flink_port']}",
        "trainer": f"http://127.0.0.1:{ports['trainer_port']}",
    }
    if settings.mlflow:
        answers["mlflow"] = f"http://{host}:{ports['mlflow_port']}"
    if settings.archive:
        answers["archive"] = f"http://127.0.0.1:{ports['archive_port']}"
    if settings.feast:
        answers["features"] = f"http://127.0.0.1:{ports['features_port']}"
    if settings.airflow:
        answers["airflow"] = f"http://{host}:{ports['airflow_port']}"
        answers["data-docs"] = f"http://{host}:{ports['docs_port']}"
    for i in range(settings.replicas):
        answers[model_server(i)] = f"{host}:{ports[of_replica('grpc_port', i)]}"
        answers[rest(i)] = f"http://{host}:{ports[of_replica('rest_port', i)]}"
        answers[sync(i)] = f"http://127.0.0.1:{ports[of_replica('sync_port', i)]}"
    return answers


def facts(
    settings: Settings, ports: Mapping[str, int], where: Mapping[str, str], names: Sequence[str]
) -> dict[str, object]:
    """platform.json: what others need to know of a platform."""
    return {
        "settings": settings.shown(),
        "ports": dict(ports),
        "addresses": dict(where),
        "folders": Layout(settings).folders(),
        "services": list(names),
    }
