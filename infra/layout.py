"""Where the parts of a platform lie and answer, and what only they may know."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.airflow import services as airflow
from infra.checks import url_host
from infra.ports import key
from infra.settings import Settings
from serving.signatures import RANKER


class Layout:
    """Where things lie in the platform's folder."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.folder
        self.kafka = self.folder / "kafka"
        self.join = self.folder / "join"
        self.mlflow = self.folder / "mlflow"
        self.airflow = self.folder / "airflow"
        self.logs = self.folder / "log"
        self.models = self.folder / "models"
        self.archive = self.folder / "archive"
        self.features = self.folder / "features"
        self.samples = self.folder / "samples"
        self.data_docs = self.folder / "data_docs"
        self.token = self.folder / "token"

    def folders(self) -> dict[str, str]:
        """Where a DAG finds things, for platform.json."""
        names = ("folder", "models", "archive", "features", "samples", "data_docs")
        return {name: str(getattr(self, name)) for name in names}

    def log(self, model: str = RANKER) -> Path:
        """The delta log of a model."""
        return self.logs / model

    def replica(self, i: int) -> Path:
        """The folder of a replica. It holds a folder a model."""
        return self.models / f"replica-{i}"

    def served(self, i: int, model: str = RANKER) -> Path:
        """The folder of a model's versions in a replica."""
        return self.replica(i) / model / "served"

    def confirmed(self, i: int, model: str = RANKER) -> Path:
        """The deltas of a model that a replica confirmed, one JSON line each."""
        return self.replica(i) / model / "sync.jsonl"

    def make(self, settings: Settings) -> None:
        own = (self.kafka / "data", self.join / "state", self.join / "tmp")
        models = [model.name for model in settings.models]
        served = [self.served(i, name) for i in range(settings.replicas) for name in models]
        for folder in (*own, self.mlflow, *(self.log(name) for name in models), self.data_docs, *served):
            folder.mkdir(parents=True, exist_ok=True)

    def write_token(self) -> str:
        """The secret without which a model server's write signatures refuse; made once, readable by its owner only."""
        if not self.token.is_file():
            with open(os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
                f.write(secrets.token_hex(32))
        return self.token.read_text()


def trainer_of(model: str) -> str:
    """The service that trains a model."""
    return "trainer" if model == RANKER else f"trainer-{model}"


def addresses(settings: Settings, ports: Mapping[str, int]) -> dict[str, str]:
    """Service -> where it answers. `model-server-<i>` is its gRPC, `model-server-<i>-rest` its REST."""
    host = url_host(settings.host)
    found = {
        "kafka": f"{host}:{ports['kafka_port']}",
        "join": f"http://{host}:{ports['flink_port']}",
    }
    for i, model in enumerate(settings.models):
        found[trainer_of(model.name)] = f"http://127.0.0.1:{ports[key('trainer_port', i)]}"
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
        found[f"model-server-{i}"] = f"{host}:{ports[key('grpc_port', i)]}"
        found[f"model-server-{i}-rest"] = f"http://{host}:{ports[key('rest_port', i)]}"
        found[f"sync-{i}"] = f"http://127.0.0.1:{ports[key('sync_port', i)]}"
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
        "models": {m.name: {"model": m.spec, "log": str(Layout(settings).log(m.name))} for m in settings.models},
        "services": list(names),
    }


def secrets_of(settings: Settings) -> dict[str, str]:
    """What the services get by their environment and nobody else reads; made once, kept in the platform's folder."""
    at = Layout(settings)
    return {"MINUTEHAND_WRITE_TOKEN": at.write_token(), **(airflow.secrets_of(at.airflow) if settings.airflow else {})}
