"""Where the parts of a platform lie and answer, and what only they may know."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.airflow import services as airflow
from infra.checks import url_host
from infra.settings import Settings


class Layout:
    """Where things lie in the platform's folder."""

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

    def folders(self) -> dict[str, str]:
        """Where a DAG finds things, for platform.json."""
        names = ("folder", "log", "models", "archive", "features", "samples", "data_docs")
        return {name: str(getattr(self, name)) for name in names}

    def replica(self, i: int) -> Path:
        return self.models / f"replica-{i}"

    def make(self, replicas: int) -> None:
        own = (self.kafka / "data", self.join / "state", self.join / "tmp")
        served = [self.replica(i) / "served" for i in range(replicas)]
        for folder in (*own, self.mlflow, self.log, self.data_docs, *served):
            folder.mkdir(parents=True, exist_ok=True)

    def write_token(self) -> str:
        """The secret without which a model server's write signatures refuse; made once, readable by its owner only."""
        if not self.token.is_file():
            with open(os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
                f.write(secrets.token_hex(32))
        return self.token.read_text()


def addresses(settings: Settings, ports: Mapping[str, int]) -> dict[str, str]:
    """Service -> where it answers. `model-server-<i>` is its gRPC, `model-server-<i>-rest` its REST."""
    host = url_host(settings.host)
    found = {
        "kafka": f"{host}:{ports['kafka_port']}",
        "join": f"http://{host}:{ports['flink_port']}",
        "trainer": f"http://127.0.0.1:{ports['trainer_port']}",
    }
    if settings.mlflow:
        found["mlflow"] = f"http://{host}:{ports['mlflow_port']}"
    if settings.archive:
        found["archive"] = f"http://127.0.0.1:{ports['archive_port']}"
    if settings.feast:
        found["features"] = f"http://127.0.0.1:{ports['features_port']}"
    if settings.airflow:
        found["airflow"] = f"http://{host}:{ports['airflow_port']}"
        found["data-docs"] = f"http://{host}:{ports['docs_port']}"
    for i in range(settings.replicas):
        end = f".{i}" if i else ""
        found[f"model-server-{i}"] = f"{host}:{ports['grpc_port' + end]}"
        found[f"model-server-{i}-rest"] = f"http://{host}:{ports['rest_port' + end]}"
        found[f"sync-{i}"] = f"http://127.0.0.1:{ports['sync_port' + end]}"
    return found


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


def secrets_of(settings: Settings) -> dict[str, str]:
    """What the services get by their environment and nobody else reads; made once, kept in the platform's folder."""
    at = Layout(settings)
    return {"MINUTEHAND_WRITE_TOKEN": at.write_token(), **(airflow.secrets_of(at.airflow) if settings.airflow else {})}
