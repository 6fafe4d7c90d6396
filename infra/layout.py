"""The names of a platform's services, their folders and their addresses."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.disk import replace
from infra.ports import nth
from infra.settings import Settings
from serving.signatures import FROZEN, RANKER


def url_host(host: str) -> str:
    """`host` as a client writes it: loopback for the wildcard, and brackets around IPv6."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def model_server(i: int) -> str:
    return f"model-server-{i}"


def rest(i: int) -> str:
    """The name of a model server's second address."""
    return f"model-server-{i}-rest"


def sync(i: int) -> str:
    return f"sync-{i}"


def trainer(model: str) -> str:
    return "trainer" if model == RANKER else f"trainer-{model}"


def base(model: str) -> str:
    """The service that writes the first base of a model."""
    return "base" if model == RANKER else f"base-{model}"


def frozen(i: int) -> str:
    """The service that makes the frozen copy of a replica's ranker, for an experiment."""
    return f"frozen-{i}"


class Layout:
    """The folders and files of a platform."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.folder
        self.kafka = self.folder / "kafka"
        self.join = self.folder / "join"
        self.mlflow = self.folder / "mlflow"
        self.airflow = self.folder / "airflow"
        self.logs = self.folder / "log"
        self.models = self.folder / "models"
        self.archive = self.folder / "archive"
        self.features = self.folder / "features"
        self.app = self.folder / "app"
        self.samples = self.folder / "samples"
        self.data_docs = self.folder / "data_docs"
        self.token = self.folder / "token"
        self.facts = self.folder / "platform.json"

    def folders(self) -> dict[str, str]:
        """The folders that a DAG reads, for platform.json."""
        names = ("folder", "models", "archive", "features", "samples", "data_docs")
        return {name: str(getattr(self, name)) for name in names}

    def states(self) -> dict[str, str]:
        """Part -> where its state names the declaration that it was written under (infra/growth.py)."""
        logs = {trainer(model.name): str(self.log(model.name)) for model in self._settings.models}
        return {"join": str(self.join / "state" / "job.json"), "archive": str(self.archive)} | logs

    def log(self, model: str = RANKER) -> Path:
        """The delta log of a model."""
        return self.logs / model

    def replica(self, i: int) -> Path:
        """The folder of a replica. It holds a folder a model."""
        return self.models / f"replica-{i}"

    def served(self, i: int, model: str = RANKER) -> Path:
        """The versions of a model that sync installs for the model server of a replica."""
        return self.replica(i) / model / "served"

    def frozen(self, i: int) -> Path:
        """The copy of the ranker that no delta changes: a demo has one, and an experiment with a frozen arm."""
        return self.replica(i) / FROZEN

    def confirmations(self, i: int, model: str = RANKER) -> Path:
        """A line for each delta of a model that a replica has confirmed."""
        return self.replica(i) / model / "sync.jsonl"

    def make(self, settings: Settings) -> None:
        own = (self.kafka / "data", self.join / "state", self.join / "tmp")
        models = [model.name for model in settings.models]
        served = [self.served(i, name) for i in range(settings.replicas) for name in models]
        for folder in (*own, self.mlflow, *(self.log(name) for name in models), self.data_docs, *served):
            folder.mkdir(parents=True, exist_ok=True)

    def write_token(self) -> str:
        """The secret that a model server's write signatures ask for. It is made once, for its owner only."""
        if not self.token.is_file():
            replace(self.token, secrets.token_hex(32).encode(), 0o600)
        return self.token.read_text()

    def lease(self) -> str:
        """The lease of the replay that owns the clock; empty if event time is live. It is made once."""
        if self._settings.event_time == "live":
            return ""
        path = self.folder / "lease"
        if not path.is_file():
            replace(path, secrets.token_hex(16).encode())
        return path.read_text()

    def event_time_flags(self) -> dict[str, object]:
        """What a process that judges event time is told."""
        flags: dict[str, object] = {"max-disorder-ms": self._settings.max_disorder_ms}
        return flags | ({"lease": lease} if (lease := self.lease()) else {})


def addresses(settings: Settings, ports: Mapping[str, int]) -> dict[str, str]:
    """Service -> its address. A model server has two: gRPC, and REST under the name `rest(i)`."""
    host = url_host(settings.host)
    answers = {
        "kafka": f"{host}:{ports['kafka_port']}",
        "join": f"http://{host}:{ports['flink_port']}",
    }
    for i, model in enumerate(settings.models):
        answers[trainer(model.name)] = f"http://127.0.0.1:{ports[nth('trainer_port', i)]}"
    if settings.mlflow:
        answers["mlflow"] = f"http://{host}:{ports['mlflow_port']}"
    if settings.event_time == "live":
        answers["clock"] = f"http://127.0.0.1:{ports['clock_port']}"
    if settings.archive:
        answers["archive"] = f"http://127.0.0.1:{ports['archive_port']}"
    if settings.feast:
        answers["features"] = f"http://127.0.0.1:{ports['features_port']}"
    if settings.app and settings.feast:
        answers["app"] = f"http://{host}:{ports['app_port']}"
    if settings.airflow:
        answers["airflow"] = f"http://{host}:{ports['airflow_port']}"
        answers["data-docs"] = f"http://{host}:{ports['docs_port']}"
    for i in range(settings.replicas):
        answers[model_server(i)] = f"{host}:{ports[nth('grpc_port', i)]}"
        answers[rest(i)] = f"http://{host}:{ports[nth('rest_port', i)]}"
        answers[sync(i)] = f"http://127.0.0.1:{ports[nth('sync_port', i)]}"
    return answers


def facts(
    settings: Settings, ports: Mapping[str, int], addresses: Mapping[str, str], names: Sequence[str]
) -> dict[str, object]:
    """The content of platform.json, by which other processes find a platform."""
    return {
        "settings": settings.shown(),
        "ports": dict(ports),
        "addresses": dict(addresses),
        "folders": Layout(settings).folders(),
        "models": {m.name: {"model": m.spec, "log": str(Layout(settings).log(m.name))} for m in settings.models},
        "services": list(names),
    }
