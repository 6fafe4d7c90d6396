"""The services of the platform: the command of each, what it comes after, and how one knows that it is ready.

kafka-format -> kafka -> topics -> join, trainer, archive, features
base -> trainer, sync-<i>, model-server-<i>          mlflow          (another model: base-<name> -> trainer-<name>)
airflow-migrate -> airflow-api, airflow-scheduler, airflow-dag-processor, airflow-triggerer    data-docs
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from common.extras import MissingExtra, require
from delta_log.log import SERVING
from infra import kafka_server
from infra.airflow import services as airflow
from infra.layout import Layout, base, model_server, rest, sync, trainer, url_host
from infra.models import ServedModel
from infra.ports import nth
from infra.settings import PROJECT, SettingError, Settings
from infra.supervise import checks
from infra.supervise.manager import Service
from serving.signatures import FROZEN

JOIN_MAIN = "minutehand.join.JoinJob"
# What is prepared but not committed when the join dies must outlive its longest absence; Kafka's own limit is 15 min.
TRANSACTION_TIMEOUT_MS = 600_000


def require_extras(settings: Settings) -> None:
    """Raises MissingExtra, in one line, if a setting turns on what is not installed."""
    missing = []
    for name, extra in (("airflow", "airflow"), ("feast", "feast"), ("mlflow", "tracking")):
        try:
            if getattr(settings, name):
                require(extra, f"{name} is true", f"set {name} = false")
        except MissingExtra as e:
            missing.append(str(e))
    if missing:
        raise MissingExtra("; ".join(missing))


def model_server_binary(settings: Settings) -> str | None:
    """The tensorflow_model_server to run; None for our own."""
    if settings.model_server == "auto":
        return shutil.which("tensorflow_model_server")
    return None if settings.model_server == "own" else settings.model_server


def model_config(at: Layout, settings: Settings, i: int) -> str:
    """TF Serving's model_config_file of a replica: the models, and the ranker's frozen copy if there is one."""
    folders = {model.name: at.served(i, model.name) for model in settings.models}
    if has_version(at.frozen(i)):
        folders[FROZEN] = at.frozen(i)
    entries = [
        f'  config {{ name: "{name}" base_path: "{folder}" model_platform: "tensorflow" }}\n'
        for name, folder in folders.items()
    ]
    return f"model_config_list {{\n{''.join(entries)}}}\n"


def has_version(folder: Path) -> bool:
    """True if the folder of a model holds a version."""
    return folder.is_dir() and any(version.name.isdigit() for version in folder.iterdir())


def secrets_of(settings: Settings) -> dict[str, str]:
    """The secrets that services get by their environment; made once, kept in the platform's folder."""
    at = Layout(settings)
    return {"MINUTEHAND_WRITE_TOKEN": at.write_token(), **(airflow.secrets_of(at.airflow) if settings.airflow else {})}


def declare(
    settings: Settings, ports: Mapping[str, int], where: Mapping[str, str], hidden: Mapping[str, str], declaration: str
) -> list[Service]:
    """All services of one platform: `where` as of infra.layout, `hidden` of `secrets_of`, `declaration` as JSON."""
    at = Layout(settings)
    services = [*_kafka(settings, ports, at, where), _join(settings, ports, at, where, declaration)]
    if settings.mlflow:
        services.append(_mlflow(settings, ports, at, where))
    for i, model in enumerate(settings.models):
        services += [_base(settings, at, model), _trainer(settings, ports, at, where, model, i)]
    for i in range(settings.replicas):
        services += [_sync(settings, ports, at, where, hidden, i), _model_server(settings, ports, at, where, i)]
    consumers = {"archive": settings.archive, "features": settings.feast}
    services += [_consumer(settings, ports, at, where, name) for name, on in consumers.items() if on]
    if settings.airflow:
        services.append(_data_docs(settings, ports, at, where))
        services += airflow.services(settings, where, hidden)
    return services


def python(module: str, *words: str, **flags: object) -> list[str]:
    """The command `python -m module word ... --flag value ...`."""
    pairs = (str(part) for flag, value in flags.items() for part in (f"--{flag}", value))
    return [sys.executable, "-m", module, *words, *pairs]


def _kafka(settings: Settings, ports: Mapping[str, int], at: Layout, where: Mapping[str, str]) -> list[Service]:
    file = at.kafka / "server.properties"

    def prepare() -> None:
        if not any(kafka_server.LIBS.glob("kafka_*.jar")):
            raise OSError(f"there is no Kafka in {kafka_server.LIBS}: run `make setup`")
        properties = kafka_server.properties(settings, at.kafka, ports["kafka_port"], ports["kafka_controller_port"])
        file.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))

    limits = {
        "kafka": where["kafka"],
        "partitions": settings.partitions,
        "retention-ms": round(settings.kafka_retention * 1000),
        "retention-bytes": settings.kafka_retention_bytes,
    }
    return [
        Service(
            "kafka-format",
            kafka_server.format_command(settings, file),
            prepare=prepare,
            once=True,
            unless=(at.kafka / "data/meta.properties").is_file,
        ),
        Service(
            "kafka",
            kafka_server.command(settings, file),
            after=("kafka-format",),
            prepare=prepare,
            ready=checks.kafka(url_host(settings.host), ports["kafka_port"]),
            address=where["kafka"],
        ),
        Service("topics", python("streaming.topics", **limits), after=("kafka",), once=True),
    ]


def join_job(
    settings: Settings, ports: Mapping[str, int], where: Mapping[str, str], declaration: str
) -> dict[str, object]:
    """The settings file of the Flink job."""
    return {
        "bootstrap": where["kafka"],
        "source": settings.source,
        "declaration": json.loads(declaration),
        "pi": settings.pi,
        "salt": settings.salt,
        "checkpoint_ms": settings.checkpoint_ms,
        "state_dir": str(Layout(settings).join / "state"),
        "rest_port": ports["flink_port"],
        "rest_address": settings.host,
        "parallelism": settings.join_parallelism,
        "topics": {name: name for name in ("impressions", "actions", "examples")},
        "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
    }


def _join(
    settings: Settings, ports: Mapping[str, int], at: Layout, where: Mapping[str, str], declaration: str
) -> Service:
    jar, options = PROJECT / "build/join.jar", PROJECT / "streaming/join/jvm.options"
    file = at.join / "join.json"

    def prepare() -> None:
        if not jar.is_file():
            raise OSError(f"there is no {jar}: run `make setup`")
        file.write_text(json.dumps(join_job(settings, ports, where, declaration), indent=1))

    heap = [f"-Xmx{settings.join_memory >> 10}k", "-XX:+ExitOnOutOfMemoryError", f"-Djava.io.tmpdir={at.join / 'tmp'}"]
    libs = f"{PROJECT / 'build/flink/libs'}/*:{jar}"
    return Service(
        "join",
        [kafka_server.java(), f"@{options}", *heap, "-cp", libs, JOIN_MAIN, str(file)],
        after=("topics",),
        prepare=prepare,
        ready=checks.flink_running(where["join"]),
        address=where["join"],
    )


def _mlflow(settings: Settings, ports: Mapping[str, int], at: Layout, where: Mapping[str, str]) -> Service:
    flags = {
        "host": settings.host,
        "port": ports["mlflow_port"],
        "workers": 1,
        "backend-store-uri": f"sqlite:///{at.mlflow / 'mlflow.db'}",
        "artifacts-destination": at.mlflow / "artifacts",
    }
    return Service(
        "mlflow",
        python("mlflow", "server", **flags),
        # Its job runner is seven more processes and a gigabyte, and outlives a SIGTERM.
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        ready=checks.http_ok(f"{where['mlflow']}/health"),
        address=where["mlflow"],
    )


def _base(settings: Settings, at: Layout, model: ServedModel) -> Service:
    """An empty log gets an untrained base from the declaration; a demo has written its own before."""
    log = at.log(model.name)
    command = python("training.learn.batch_pass", source=settings.source, log=log, model=model.spec)
    return Service(base(model.name), [*command, "--untrained"], once=True, unless=(log / SERVING).is_file)


def _trainer(
    settings: Settings, ports: Mapping[str, int], at: Layout, where: Mapping[str, str], model: ServedModel, i: int
) -> Service:
    name = trainer(model.name)
    flags = {
        "source": settings.source,
        "model": model.spec,
        "log": at.log(model.name),
        "kafka": where["kafka"],
        "sync-every-ms": settings.sync_every_ms,
        "mlflow": where.get("mlflow", "none"),
        "base-every": settings.base_every,
        "keep-bases": settings.keep_bases,
        "port": ports[nth("trainer_port", i)],
    }
    return Service(
        name,
        [*python("training.learn.online", **flags), *(["--digest"] if settings.digest else [])],
        after=("topics", base(model.name)),  # not mlflow: its absence must not delay a delta
        ready=checks.http_ok(f"{where[name]}/healthz"),
        address=where[name],
    )


def _consumer(settings: Settings, ports: Mapping[str, int], at: Layout, where: Mapping[str, str], name: str) -> Service:
    """The archive and the feature push: each reads the topics and keeps its own folder."""
    to = getattr(at, name)
    flags = {"source": settings.source, "kafka": where["kafka"], "to": to, "port": ports[f"{name}_port"]}
    return Service(
        name,
        python({"archive": "streaming.archive.archiver", "features": "features.push"}[name], **flags),
        after=("topics",),
        env={"MINUTEHAND_FEATURES": str(at.features)} if name == "features" else {},
        ready=checks.http_ok(f"{where[name]}/healthz"),
        address=where[name],
        nice=airflow.NICE,
    )


def _data_docs(settings: Settings, ports: Mapping[str, int], at: Layout, where: Mapping[str, str]) -> Service:
    """A server of the pages that the DAGs' validations wrote: a browser follows no file:// link from Airflow's page."""
    flags = {"bind": settings.host, "directory": at.data_docs}
    return Service(
        "data-docs",
        python("http.server", str(ports["docs_port"]), **flags),
        ready=checks.http_ok(where["data-docs"]),
        address=where["data-docs"],
        nice=airflow.NICE,
    )


def _sync(
    settings: Settings,
    ports: Mapping[str, int],
    at: Layout,
    where: Mapping[str, str],
    hidden: Mapping[str, str],
    i: int,
) -> Service:
    logs = [word for model in settings.models for word in ("--log", f"{model.name}={at.log(model.name)}")]
    flags = {
        "source": settings.source,
        "models": at.replica(i),
        "serving": where[model_server(i)],
        "port": ports[nth("sync_port", i)],
    }
    return Service(
        sync(i),
        python("serving.sync.sync", *logs, **flags),
        after=tuple(base(model.name) for model in settings.models),
        env={"MINUTEHAND_WRITE_TOKEN": hidden["MINUTEHAND_WRITE_TOKEN"]},
        ready=checks.http_ok(f"{where[sync(i)]}/healthz"),
        address=where[sync(i)],
    )


def _model_server(
    settings: Settings, ports: Mapping[str, int], at: Layout, where: Mapping[str, str], i: int
) -> Service:
    """Starts when sync-<i> has installed a version: a stock tensorflow_model_server does not start without one.

    The stock server has no flag for its address and listens on all; its write signatures need the token all the same.
    """
    file = at.replica(i) / "models.config"
    flags = {
        "port": ports[nth("grpc_port", i)],
        "rest_api_port": ports[nth("rest_port", i)],
        "model_config_file": file,
    }
    binary = model_server_binary(settings)
    names = [model.name for model in settings.models]

    def prepare() -> None:
        file.write_text(model_config(at, settings, i))

    def waits_for() -> str:
        missing = [name for name in names if not has_version(at.served(i, name))]
        return f"{sync(i)} has not installed a version of {', '.join(missing)} yet" if missing else ""

    return Service(
        model_server(i),
        [binary, *(f"--{k}={v}" for k, v in flags.items())]
        if binary
        else python("serving.server.model_server", **flags),
        after=tuple(base(name) for name in names),
        when=waits_for,
        prepare=prepare,
        env={"TF_CPP_MIN_LOG_LEVEL": "1" if binary else "2"},
        ready=checks.first_of(checks.model_available(where[rest(i)], name) for name in names),
        address=f"{where[model_server(i)]}  {where[rest(i)]}",
    )


def minute_loop(settings: Settings) -> tuple[str, ...]:
    """The services that events pass through: all but Airflow."""
    on = {"mlflow": settings.mlflow, "archive": settings.archive, "features": settings.feast}
    replicas = [name(i) for i in range(settings.replicas) for name in (sync, model_server)]
    trainers = [trainer(model.name) for model in settings.models]
    return ("join", *trainers, *replicas, *(name for name, wanted in on.items() if wanted))


def select(services: list[Service], only: tuple[str, ...]) -> set[str]:
    """The names of `only` and of what they come after; all if empty. Raises SettingError for a name that is none."""
    named = {s.name: s for s in services}
    if wrong := [name for name in only if name not in named]:
        raise SettingError(f"there is no service {wrong[0]!r}; allowed are {', '.join(named)}")
    wanted: set[str] = set()
    queue = list(only or named)
    while queue:
        if (name := queue.pop()) not in wanted:
            wanted.add(name)
            queue += named[name].after
    return wanted
