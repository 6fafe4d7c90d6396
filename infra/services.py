"""The services of a platform: the command of each, the services before it, and the check that it is ready.

kafka-format -> kafka -> topics -> join, clock, trainer, archive, features -> app
base -> trainer, sync-<i>, model-server-<i>          mlflow          (another model: base-<name> -> trainer-<name>)
airflow-migrate -> airflow-api, airflow-scheduler, airflow-dag-processor, airflow-triggerer    data-docs
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.extras import MissingExtra, require
from delta_log.log import SERVING
from infra import kafka_server
from infra.airflow import services as airflow
from infra.layout import Layout, base, frozen, model_server, rest, sync, trainer, url_host
from infra.models import ServedModel
from infra.ports import nth
from infra.settings import PROFILES, PROJECT, Settings
from infra.supervise import checks
from infra.supervise.service import Service
from serving.app.address import APP_KEY, check_address
from serving.signatures import FROZEN, RANKER

JOIN_MAIN = "minutehand.join.JoinJob"
TRANSACTION_TIMEOUT_MS = 600_000
"""When the join dies, its prepared transaction must outlive its longest absence. Kafka's own limit is 15 minutes."""


def require_extras(settings: Settings) -> None:
    """Raises MissingExtra if a setting needs an extra that is not installed. The message names all of them."""
    missing = []
    extras = (("airflow", "airflow"), ("app", "app"), ("feast", "feast"), ("mlflow", "tracking"))
    for name, extra in extras:
        try:
            if getattr(settings, name) and (name != "app" or settings.feast):
                require(extra, f"{name} is true", f"set {name} = false")
        except MissingExtra as e:
            missing.append(str(e))
    if missing:
        raise MissingExtra("; ".join(missing))


def model_server_binary(settings: Settings) -> str | None:
    """The tensorflow_model_server to run, or None for our own server."""
    if settings.model_server == "auto":
        return shutil.which("tensorflow_model_server")
    return None if settings.model_server == "own" else settings.model_server


def model_config(settings: Settings, i: int) -> str:
    """TensorFlow Serving's model_config_file of a replica: the models, and the ranker's frozen copy if there is one."""
    layout = Layout(settings)
    folders = {model.name: layout.served(i, model.name) for model in settings.models}
    if has_version(layout.frozen(i)):
        folders[FROZEN] = layout.frozen(i)
    entries = [
        f'  config {{ name: "{name}" base_path: {_quoted(folder)} model_platform: "tensorflow" }}\n'
        for name, folder in folders.items()
    ]
    return f"model_config_list {{\n{''.join(entries)}}}\n"


def _quoted(path: Path) -> str:
    """A text of protobuf's text format, whose escapes for quotes and backslashes are those of JSON."""
    return json.dumps(str(path), ensure_ascii=False)


def has_version(folder: Path) -> bool:
    """True if the folder of a model holds a version."""
    return folder.is_dir() and any(version.name.isdigit() for version in folder.iterdir())


def secrets_of(settings: Settings) -> dict[str, str]:
    """The secrets that services get by their environment. They are made once and kept in the platform's folder."""
    layout = Layout(settings)
    secrets = {"MINUTEHAND_WRITE_TOKEN": layout.write_token()}
    if settings.app and settings.feast:
        check_address(settings.host, key := os.environ.get(APP_KEY, ""))
        secrets |= {APP_KEY: key} if key else {}
    return secrets | (airflow.secrets_of(layout.airflow) if settings.airflow else {})


@dataclass(frozen=True)
class Site:
    """A platform as its services need it: its settings and ports, the addresses of all services, and their secrets."""

    settings: Settings
    ports: Mapping[str, int]
    addresses: Mapping[str, str]
    secrets: Mapping[str, str]

    @property
    def layout(self) -> Layout:
        return Layout(self.settings)


def declare(site: Site, declaration: str) -> list[Service]:
    """All services of a platform. `declaration` is the source's, as JSON."""
    settings = site.settings
    services = [*_kafka(site), _join(site, declaration)]
    if settings.event_time == "live":
        command = python("streaming.clock", kafka=site.addresses["kafka"], port=site.ports["clock_port"])
        services.append(_ours(site, "clock", command, after=("topics",)))
    if settings.mlflow:
        services.append(_mlflow(site))
    for i, model in enumerate(settings.models):
        services += [_base(site, model), _trainer(site, model, i)]
    for i in range(settings.replicas):
        services += [*_frozen(site, i), _sync(site, i), _model_server(site, i)]
    consumers = {"archive": settings.archive, "features": settings.feast}
    services += [_consumer(site, name) for name, on in consumers.items() if on]
    if "app" in site.addresses:
        services.append(_app(site))
    if settings.airflow:
        services += [_data_docs(site), *airflow.services(settings, site.addresses, site.secrets)]
    return services


def python(module: str, *words: str, **flags: object) -> list[str]:
    """The command `python -m module word ... --flag value ...`."""
    pairs = (str(part) for flag, value in flags.items() for part in (f"--{flag}", value))
    return [sys.executable, "-m", module, *words, *pairs]


def _kafka(site: Site) -> list[Service]:
    settings, ports, folder = site.settings, site.ports, site.layout.kafka
    file, address = folder / "server.properties", site.addresses["kafka"]

    def prepare() -> None:
        if not any(kafka_server.LIBS.glob("kafka_*.jar")):
            raise OSError(f"there is no Kafka in {kafka_server.LIBS}: run `make setup`")
        properties = kafka_server.properties(settings, folder, ports["kafka_port"], ports["kafka_controller_port"])
        kafka_server.write_properties(file, properties)

    limits = {
        "kafka": address,
        "partitions": settings.partitions,
        "retention-ms": round(settings.kafka_retention * 1000),
        "retention-bytes": settings.kafka_retention_bytes,
    }
    return [
        Service(
            "kafka-format",
            kafka_server.format_command(file),
            env=kafka_server.JAVA_ENVIRONMENT,
            prepare=prepare,
            once=True,
            unless=(folder / "data/meta.properties").is_file,
        ),
        Service(
            "kafka",
            kafka_server.command(settings, file),
            env=kafka_server.JAVA_ENVIRONMENT,
            after=("kafka-format",),
            prepare=prepare,
            ready=checks.kafka(url_host(settings.host), ports["kafka_port"], lambda: kafka_server.cluster_id(folder)),
            ports=(ports["kafka_port"], ports["kafka_controller_port"]),
            address=address,
        ),
        Service("topics", python("streaming.topics", **limits), after=("kafka",), once=True),
    ]


def join_job(site: Site, declaration: str) -> dict[str, object]:
    """The settings file of the Flink job."""
    settings = site.settings
    return {
        "bootstrap": site.addresses["kafka"],
        "source": settings.source,
        "declaration": json.loads(declaration),
        "lease": site.layout.lease(),
        "max_disorder_ms": settings.max_disorder_ms,
        "pi": settings.pi,
        "salt": settings.salt,
        "checkpoint_ms": settings.checkpoint_ms,
        "state_dir": str(site.layout.join / "state"),
        "rest_port": site.ports["flink_port"],
        "rest_address": settings.host,
        "parallelism": settings.join_parallelism,
        "topics": {name: name for name in ("impressions", "actions", "examples")},
        "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
    }


def _join(site: Site, declaration: str) -> Service:
    jar, options = PROJECT / "build/join.jar", PROJECT / "streaming/join/jvm.options"
    folder, address = site.layout.join, site.addresses["join"]
    file = folder / "join.json"

    def prepare() -> None:
        if not jar.is_file():
            raise OSError(f"there is no {jar}: run `make setup`")
        file.write_text(json.dumps(join_job(site, declaration), indent=1))

    heap = [f"-Xmx{site.settings.join_memory >> 10}k", "-XX:+ExitOnOutOfMemoryError"]
    heap += [f"-Djava.io.tmpdir={folder / 'tmp'}"]
    libs = f"{PROJECT / 'build/flink/libs'}/*:{jar}"
    return Service(
        "join",
        [kafka_server.java(), f"@{options}", *heap, "-cp", libs, JOIN_MAIN, str(file)],
        env=kafka_server.JAVA_ENVIRONMENT,
        folder=folder,
        after=("topics",),
        prepare=prepare,
        ready=checks.flink_running(address),
        ports=(site.ports["flink_port"],),
        address=address,
    )


def _mlflow(site: Site) -> Service:
    folder, address = site.layout.mlflow, site.addresses["mlflow"]
    flags = {
        "host": site.settings.host,
        "port": site.ports["mlflow_port"],
        "workers": 1,
        "backend-store-uri": "sqlite:///mlflow.db",  # in its folder, whose name may have any character
        "artifacts-destination": "artifacts",
    }
    environment = folder / "environment"

    def prepare() -> None:
        environment.unlink(missing_ok=True)
        environment.symlink_to(sys.prefix)

    # MLflow's migrations fail below a name with %: they find themselves below the working directory.
    interpreter = f"/proc/self/cwd/{environment.name}/bin/python"
    return Service(
        "mlflow",
        [interpreter, *python("mlflow", "server", **flags)[1:]],
        prepare=prepare,
        # Its job runner would be seven more processes with a gigabyte, and would outlive a SIGTERM.
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        folder=folder,
        ready=checks.http_ok(f"{address}/health"),
        ports=(site.ports["mlflow_port"],),
        address=address,
    )


def _base(site: Site, model: ServedModel) -> Service:
    """Writes an untrained base into an empty log. (A demo has written a trained one before.)"""
    log = site.layout.log(model.name)
    command = python("training.learn.batch_pass", source=site.settings.source, log=log, model=model.spec)
    return Service(base(model.name), [*command, "--untrained"], once=True, unless=(log / SERVING).is_file)


def _ours(site: Site, name: str, command: list[str], **more: Any) -> Service:
    """A service of ours that answers /healthz."""
    address = site.addresses[name]
    port = int(address.rpartition(":")[2])
    return Service(name, command, ready=checks.http_ok(f"{address}/healthz"), ports=(port,), address=address, **more)


def _trainer(site: Site, model: ServedModel, i: int) -> Service:
    settings, name = site.settings, trainer(model.name)
    flags = {
        "source": settings.source,
        "model": model.spec,
        "log": site.layout.log(model.name),
        "kafka": site.addresses["kafka"],
        "sync-every-ms": settings.sync_every_ms,
        "mlflow": site.addresses.get("mlflow", "none"),
        "base-every": settings.base_every,
        "keep-bases": settings.keep_bases,
        "port": site.ports[nth("trainer_port", i)],
    }
    dense = {"dense-rate": settings.dense_rate, "dense-every": settings.dense_every}
    flags |= {flag: value for flag, value in dense.items() if value != "source"}
    command = [*python("training.learn.online", **flags), *(["--digest"] if settings.digest else [])]
    return _ours(site, name, command, after=("topics", base(model.name)))  # not mlflow: no delta waits for it


def _consumer(site: Site, name: str) -> Service:
    """The archive or the feature push: each reads the topics and keeps its own folder."""
    module = {"archive": "streaming.archive.archiver", "features": "features.push"}[name]
    flags = {"kafka": site.addresses["kafka"], "to": getattr(site.layout, name), "port": site.ports[f"{name}_port"]}
    if name == "features":
        flags["push-ms"] = site.settings.push_ms
    command = python(module, source=site.settings.source, **flags, **site.layout.event_time_flags())
    env = _feature_repo(site) if name == "features" else {}
    return _ours(site, name, command, after=("topics",), env=env, nice=airflow.NICE)


def _feature_repo(site: Site) -> dict[str, str]:
    """The variables by which the feature store is found."""
    named = {"MINUTEHAND_FEATURES": str(site.layout.features), "MINUTEHAND_SOURCE": site.settings.source}
    return named | ({PROFILES: site.settings.profiles} if site.settings.profiles else {})


def _app(site: Site) -> Service:
    """The service that apps talk to. It reads the feature store, so it starts when the store is filled."""
    settings = site.settings
    flags: dict[str, object] = {
        "source": settings.source,
        "kafka": site.addresses["kafka"],
        "serving": ",".join(site.addresses[model_server(i)] for i in range(settings.replicas)),
        "features": site.layout.features,
        "to": site.layout.app,
        "host": settings.host,
        "port": site.ports["app_port"],
        "event-time": settings.event_time,
        "max-disorder-ms": settings.max_disorder_ms,
    }
    if len(settings.experiment) > 1:
        flags["arms"] = settings.arms
    key = {APP_KEY: value} if (value := site.secrets.get(APP_KEY)) else {}
    env = {**_feature_repo(site), **key, **settings.tls_environment()}
    return _ours(site, "app", python("serving.app.server", **flags), after=("features",), env=env)


def _data_docs(site: Site) -> Service:
    """Serves the pages that the DAGs' validations write: a browser opens no file:// link of Airflow's page."""
    address = site.addresses["data-docs"]
    flags = {"bind": site.settings.host, "directory": site.layout.data_docs}
    command = python("http.server", str(site.ports["docs_port"]), **flags)
    ports = (site.ports["docs_port"],)
    return Service("data-docs", command, ready=checks.http_ok(address), ports=ports, address=address, nice=airflow.NICE)


def _sync(site: Site, i: int) -> Service:
    names = [model.name for model in site.settings.models]
    logs = [word for name in names for word in ("--log", f"{name}={site.layout.log(name)}")]
    flags = {
        "source": site.settings.source,
        "models": site.layout.replica(i),
        "serving": site.addresses[model_server(i)],
        "port": site.ports[nth("sync_port", i)],
    }
    command = python("serving.sync.sync", *logs, **flags)
    env = {"MINUTEHAND_WRITE_TOKEN": site.secrets["MINUTEHAND_WRITE_TOKEN"], **site.settings.tls_environment()}
    return _ours(site, sync(i), command, after=tuple(base(name) for name in names), env=env)


def _frozen(site: Site, i: int) -> list[Service]:
    """Copies the ranker as it is when an experiment first asks for a frozen arm. No delta changes the copy."""
    if not any(arm.model == FROZEN for arm in site.settings.experiment):
        return []
    folder, flags = site.layout.frozen(i), {"source": site.settings.source, "log": site.layout.log()}
    command = python("serving.export", "--frozen", **flags, seq=sys.maxsize, to=folder)
    return [Service(frozen(i), command, after=(base(RANKER),), once=True, unless=lambda: has_version(folder))]


def _model_server(site: Site, i: int) -> Service:
    """Starts when sync-<i> has installed a version: a stock tensorflow_model_server does not start without one.

    The stock server has no flag for its address and listens on all. Its write signatures need the token all the same.
    It tries a load once: while it tries again (five times, a minute apart), it reports no error and loads nothing else.
    """
    settings, layout, address = site.settings, site.layout, site.addresses[rest(i)]
    file = layout.replica(i) / "models.config"
    ports = site.ports[nth("grpc_port", i)], site.ports[nth("rest_port", i)]
    flags: dict[str, object] = {"port": ports[0], "rest_api_port": ports[1], "model_config_file": file}
    if settings.ssl_config_file:
        flags["ssl_config_file"] = settings.ssl_config_file
    binary = model_server_binary(settings)
    stock = [str(binary), *(f"--{flag}={value}" for flag, value in (flags | {"max_num_load_retries": 0}).items())]
    names = [model.name for model in settings.models]

    def prepare() -> None:
        file.write_text(model_config(settings, i))

    def waits_for() -> str:
        missing = [name for name in names if not has_version(layout.served(i, name))]
        return f"{sync(i)} has not installed a version of {', '.join(missing)} yet" if missing else ""

    return Service(
        model_server(i),
        stock if binary else python("serving.server.model_server", host=settings.host, **flags),
        after=(*(base(name) for name in names), *(service.name for service in _frozen(site, i))),
        needs=(sync(i),),
        when=waits_for,
        prepare=prepare,
        env={"TF_CPP_MIN_LOG_LEVEL": "1" if binary else "2"},
        ready=checks.first_of(checks.model_available(address, name) for name in names),
        ports=ports,
        address=f"{site.addresses[model_server(i)]}  {address}",
    )


def minute_loop(settings: Settings) -> tuple[str, ...]:
    """The services that events pass through: all but Airflow."""
    on = {"mlflow": settings.mlflow, "archive": settings.archive, "features": settings.feast}
    on["app"] = settings.app and settings.feast
    replicas = [name(i) for i in range(settings.replicas) for name in (sync, model_server)]
    trainers = [trainer(model.name) for model in settings.models]
    return ("join", *trainers, *replicas, *(name for name, wanted in on.items() if wanted))
