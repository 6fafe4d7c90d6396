"""docker-compose.yml, made from what the local platform declares, so that the two cannot drift apart.

    python -m infra.compose > docker-compose.yml       the file as it lies in the project
    python -m infra.compose --set source=kuairand --set sync_every=10s > docker-compose.yml
    python -m infra.compose prepare                    in the container `prepare`: writes what the others read

Commands, ports and variables come from infra.services.declare with the network's addresses in place of loopback's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infra import kafka_server, layout, services, yaml_text
from infra.airflow import services as airflow
from infra.platform import declaration_of
from infra.settings import FIELDS, PORTS, PROJECT, Settings, load
from infra.supervise.manager import Service
from infra.supervise.processes import write_json, write_private
from serving.signatures import RANKER

HOME = Path("/var/lib/minutehand")  # the volume that all of ours share
CODE = Path("/opt/minutehand")  # the project in our image
OURS = "minutehand:0.1.0"
KAFKA, FLINK, MLFLOW = "apache/kafka:4.3.1", "flink:2.3.0-scala_2.12-java17", "ghcr.io/mlflow/mlflow:v3.17.2"
REDIS, POSTGRES = "redis:7.4", "postgres:16.9"
# The newest image known to be published. It is behind the trainer's TensorFlow, which the export allows for.
MODEL_SERVER = "tensorflow/serving:2.19.1"
JARS = [  # what the job uses and Flink's image does not bring
    "flink-connector-kafka-5.0.0-2.2.jar",
    "flink-connector-base-2.3.0.jar",
    "kafka-clients-4.2.0.jar",
    "lz4-java-1.10.3.jar",
]
OUTSIDE_PORT = 29092  # Kafka for clients that are not in the network
# It stands in addresses.
POSTGRES_PASSWORD = "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD, the database's password (letters and digits)}"
SECRETS = {
    "MINUTEHAND_WRITE_TOKEN": "the secret of the model server's write signatures",
    "AIRFLOW__CORE__FERNET_KEY": "32 random bytes in URL-safe base64",
    "AIRFLOW__API_AUTH__JWT_SECRET": "a long random text",
    "AIRFLOW__API__SECRET_KEY": "a long random text",
}
ADMIN = "MINUTEHAND_AIRFLOW_PASSWORD"
UID, FLINK_UID = 50000, 9999  # of apache/airflow and of flink
HEAD = """\
# The whole platform in containers. Made by `python -m infra.compose` from what `minutehand up` runs: do not edit, write
# it again (--set name=value as for minutehand); tests/infra/test_compose.py compares. Pages listen on loopback only.
#
#   make setup                   # builds build/join.jar and fetches its libraries, which Flink's image runs
#   { echo POSTGRES_PASSWORD=$(openssl rand -hex 16); echo MINUTEHAND_AIRFLOW_PASSWORD=$(openssl rand -hex 8)
#     echo MINUTEHAND_WRITE_TOKEN=$(openssl rand -hex 32); echo AIRFLOW__API__SECRET_KEY=$(openssl rand -hex 32)
#     echo AIRFLOW__API_AUTH__JWT_SECRET=$(openssl rand -hex 32)
#     echo AIRFLOW__CORE__FERNET_KEY=$(openssl rand 32 | base64 | tr +/ -_); } > .env; chmod 600 .env
#   docker-compose up --build    # Airflow: http://127.0.0.1:8080, user admin; MLflow: 5000; Flink: 8081; REST: 8501
"""


def wanted(name: str, why: str) -> str:
    """A variable that must be set; what compose says without it."""
    return f"${{{name}:?set {name}, {why}}}"


def settings_of(flags: Sequence[str]) -> Settings:
    """The settings as the containers see them; ports are the defaults, each in a container of its own."""
    chosen = load(None, flags, {})
    own = {name: FIELDS[name].metadata["default"] for name in PORTS}
    database = f"postgresql://minutehand:{POSTGRES_PASSWORD}@postgres:5432/airflow"
    fixed: dict[str, Any] = {
        "name": HOME.name,
        "var": str(HOME.parent),
        "host": "0.0.0.0",
        "replicas": 1,
        "airflow_db": database,
    }
    on: dict[str, Any] = dict.fromkeys(("mlflow", "airflow", "archive", "feast"), True)
    return dataclasses.replace(chosen, **own, **fixed, **on, model_server="/usr/bin/tensorflow_model_server")


def ports_of(settings: Settings) -> dict[str, int]:
    return {name: getattr(settings, name) for name in PORTS}


def addresses(settings: Settings) -> dict[str, str]:
    """As infra.layout.addresses, by the containers' names."""
    names = {"join": "jobmanager", "model-server-0-rest": "model-server-0", "airflow": "airflow-api"}
    names["data-docs"] = "127.0.0.1"  # nobody in the network reads them: a person's browser does, on the host
    here = layout.addresses(settings, ports_of(settings))
    return {
        service: re.sub(r"127\.0\.0\.1|0\.0\.0\.0", names.get(service, service), at) for service, at in here.items()
    }


def declared(settings: Settings) -> dict[str, Service]:
    """What the local platform would run, with the network's addresses."""
    hidden = {name: wanted(name, why) for name, why in SECRETS.items()}
    found = services.declare(settings, ports_of(settings), addresses(settings), hidden, "{}")
    return {s.name: s for s in found}


def _there(text: str) -> str:
    return text.replace(str(PROJECT), str(CODE))


def http(port: int, path: str, says: str) -> list[str]:
    """A health check with what every image has: bash. The answer must hold `says`."""
    ask = rf"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n' >&3"
    return ["CMD", "bash", "-c", f"{ask}; grep -q '{says}' <&3"]


def health(test: list[str], start_s: int = 60) -> dict[str, Any]:
    return {"test": test, "interval": "5s", "timeout": "5s", "retries": 12, "start_period": f"{start_s}s"}


def published(*ports: int) -> list[str]:
    return [f"127.0.0.1:{port}:{port}" for port in ports]


def after(**conditions: str) -> dict[str, dict[str, str]]:
    kinds = {"done": "service_completed_successfully", "healthy": "service_healthy", "started": "service_started"}
    return {name.replace("_", "-"): {"condition": kinds[kind]} for name, kind in conditions.items()}


def compose(settings: Settings) -> dict[str, Any]:
    """The file as plain values."""
    local, port = declared(settings), ports_of(settings)
    restart = {"restart": "unless-stopped"}

    def ours(name: str, depends: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A service of the local platform in our image: its very command and variables."""
        service = local[name]
        more_env = (page if "AIRFLOW_HOME" in service.env else {}) | (
            feast if "MINUTEHAND_FEATURES" in service.env else {}
        )
        again: dict[str, Any] = {} if service.once else dict(restart)
        if service.nice:
            again["cpu_shares"] = 256  # a quarter of the others', where there is not enough for all
        return {
            "image": OURS,
            "command": ["python", *(_there(word) for word in service.command[1:])],
            "environment": {k: _there(v) for k, v in service.env.items()} | here | more_env,
            "volumes": [f"state:{HOME}"],
            "depends_on": depends,
            **again,
            **more,
        }

    def healthz(name: str) -> dict[str, Any]:
        return {"healthcheck": health(http(port[name], "/healthz", "200 OK")), "ports": published(port[name])}

    # A person's browser is on the host, the tasks are in the network.
    page = {"AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port['airflow_port']}"}
    feast = {
        "FEAST_FS_YAML_FILE_PATH": f"{CODE}/feature_repo/feature_store.compose.yaml",
        "MINUTEHAND_REDIS": "redis:6379",
        "MINUTEHAND_REGISTRY": f"postgresql+psycopg2://minutehand:{POSTGRES_PASSWORD}@postgres:5432/feast",
    }
    here = {"MINUTEHAND_HEALTH_HOST": "0.0.0.0", "PYTHONPATH": str(CODE)}
    prepared = after(prepare="done")
    broker = after(prepare="done", topics="done")
    given = {f"MINUTEHAND_{n.upper()}": str(getattr(settings, n)) for n in sorted(settings.given - set(PORTS))}
    found: dict[str, Any] = {
        "prepare": {
            "image": OURS,
            "build": {"context": ".", "dockerfile": "infra/images/Dockerfile"},
            "user": "root",
            "command": ["python", "-m", "infra.compose", "prepare"],
            "environment": given | {ADMIN: wanted(ADMIN, f"the password of Airflow's user {airflow.USER}")},
            "volumes": [f"state:{HOME}"],
        },
        "kafka": _kafka(settings) | restart,
        "topics": ours("topics", after(kafka="healthy", prepare="done")),
        **_flink(settings, broker, restart),
        "postgres": {
            "image": POSTGRES,
            "environment": {
                "POSTGRES_USER": "minutehand",
                "POSTGRES_PASSWORD": POSTGRES_PASSWORD,
                "POSTGRES_DB": "airflow",
            },
            "volumes": [
                "postgres:/var/lib/postgresql/data",
                "./infra/images/databases.sql:/docker-entrypoint-initdb.d/databases.sql:ro",
            ],
            # By TCP: while the image makes the databases, its server answers on its socket only.
            "healthcheck": health(["CMD", "pg_isready", "-h", "127.0.0.1", "-U", "minutehand", "-d", "airflow"], 10),
            **restart,
        },
        "redis": {
            "image": REDIS,
            "command": ["redis-server", "--appendonly", "yes"],
            "volumes": ["redis:/data"],
            "healthcheck": health(["CMD", "redis-cli", "ping"], 5),
            **restart,
        },
        "mlflow": {
            "image": MLFLOW,
            "command": ["python", *(_there(word) for word in local["mlflow"].command[1:])],
            # By name it is asked from the network, by loopback from the host; it refuses every other.
            "environment": dict(local["mlflow"].env)
            | {"MLFLOW_SERVER_ALLOWED_HOSTS": f"mlflow:{port['mlflow_port']},localhost:*,127.0.0.1:*"},
            "volumes": [f"mlflow:{layout.Layout(settings).mlflow}"],
            "ports": published(port["mlflow_port"]),
            "healthcheck": health(_urlopen(f"http://127.0.0.1:{port['mlflow_port']}/health")),
            **restart,
        },
        "base": ours("base", prepared),
        "trainer": ours("trainer", broker | after(base="done"), **healthz("trainer_port")),
        "sync-0": ours("sync-0", after(base="done"), **healthz("sync_port")),
        "model-server-0": _model_server(settings, local["model-server-0"]) | restart,
    }
    for name in sorted(set(local) & {"archive", "features"}):
        stores = after(postgres="healthy", redis="healthy") if name == "features" else {}
        found[name] = ours(name, broker | stores, **healthz(f"{name}_port"))
    docs = health(http(port["docs_port"], "/", "200 OK"))
    found["data-docs"] = ours("data-docs", prepared, ports=published(port["docs_port"]), healthcheck=docs)
    database = after(postgres="healthy", prepare="done")
    found["airflow-migrate"] = ours("airflow-migrate", database)
    migrated = database | after(airflow_migrate="done")
    up = health(http(port["airflow_port"], "/api/v2/monitor/health", "200 OK"))
    found["airflow-api"] = ours("airflow-api", migrated, ports=published(port["airflow_port"]), healthcheck=up)
    for name, key in airflow.COMPONENTS.items():
        # The API server's word on it, by its heartbeat.
        asked = _urlopen(f"{addresses(settings)['airflow']}/api/v2/monitor/health", key)
        found[f"airflow-{name}"] = ours(
            f"airflow-{name}", migrated | after(airflow_api="healthy"), healthcheck=health(asked)
        )
    volumes: dict[str, Any] = {name: {} for name in ("state", "kafka", "mlflow", "postgres", "redis")}
    return {"services": found, "volumes": volumes, "networks": {"default": {"name": "minutehand"}}}


def _urlopen(url: str, key: str = "") -> list[str]:
    says = f"; sys.exit(json.load(a)['{key}']['status'] != 'healthy')" if key else ""
    code = f"import json, sys, urllib.request as u; a = u.urlopen('{url}', timeout=4){says}"
    return ["CMD", "python", "-c", code]


def _kafka(settings: Settings) -> dict[str, Any]:
    """The official image turns KAFKA_X_Y into x.y of server.properties; all of ours, but where it listens and lies."""
    said = kafka_server.properties(
        settings, layout.Layout(settings).kafka, settings.kafka_port, settings.kafka_controller_port
    )
    inside, control = settings.kafka_port, settings.kafka_controller_port
    said |= {
        "log.dirs": "/var/lib/kafka/data",
        "controller.quorum.voters": f"1@kafka:{control}",
        "listeners": f"PLAINTEXT://0.0.0.0:{inside},OUTSIDE://0.0.0.0:{OUTSIDE_PORT},CONTROLLER://0.0.0.0:{control}",
        "advertised.listeners": f"PLAINTEXT://kafka:{inside},OUTSIDE://127.0.0.1:{OUTSIDE_PORT}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,OUTSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
    }
    environment = {f"KAFKA_{name.upper().replace('.', '_')}": str(value) for name, value in said.items()}
    heap = {"CLUSTER_ID": kafka_server.CLUSTER_ID, "KAFKA_HEAP_OPTS": f"-Xmx{settings.kafka_memory >> 10}k"}
    tool = ["/opt/kafka/bin/kafka-broker-api-versions.sh", "--bootstrap-server", f"127.0.0.1:{inside}"]
    return {
        "image": KAFKA,
        "hostname": "kafka",
        "environment": heap | environment,
        "volumes": ["kafka:/var/lib/kafka/data"],
        "ports": published(OUTSIDE_PORT),
        "healthcheck": health(["CMD", *tool], 30) | {"interval": "10s", "timeout": "10s"},
    }


def _flink(settings: Settings, depends: dict[str, Any], restart: dict[str, str]) -> dict[str, Any]:
    """Our jar as an application of its own cluster; it resumes from its newest checkpoint on the shared volume."""
    jars = [f"./build/flink/libs/{jar}" for jar in JARS] + ["./build/join.jar"]
    properties = {
        "jobmanager.rpc.address": "jobmanager",
        "rest.port": settings.flink_port,
        "taskmanager.numberOfTaskSlots": settings.join_parallelism,
        "jobmanager.memory.process.size": "1g",
        "taskmanager.memory.process.size": f"{(settings.join_memory >> 20) + 768}m",
    }
    common = {
        "image": FLINK,
        "environment": {"FLINK_PROPERTIES": "".join(f"{k}: {v}\n" for k, v in properties.items())},
        "volumes": [f"state:{HOME}", *(f"{jar}:/opt/flink/usrlib/{Path(jar).name}:ro" for jar in jars)],
        **restart,
    }
    job = str(layout.Layout(settings).join / "join.json")
    return {
        "jobmanager": common
        | {
            "hostname": "jobmanager",
            "command": ["standalone-job", "--job-classname", services.JOIN_MAIN, job],
            "depends_on": depends,
            "ports": published(settings.flink_port),
            "healthcheck": health(http(settings.flink_port, "/jobs/overview", "RUNNING")),
        },
        "taskmanager": common | {"command": ["taskmanager"], "depends_on": after(jobmanager="started")},
    }


def _model_server(settings: Settings, local: Service) -> dict[str, Any]:
    """The stock server does not start without a version: it waits for sync's first, as it does locally."""
    served = layout.Layout(settings).served(0)
    return {
        "image": MODEL_SERVER,
        "entrypoint": ["/bin/bash", "-c"],
        "command": [f"until ls -d {served}/[0-9]* >/dev/null 2>&1; do sleep 1; done; exec {' '.join(local.command)}"],
        "environment": dict(local.env),
        "volumes": [f"state:{HOME}"],
        "depends_on": after(sync_0="started"),
        "ports": published(settings.grpc_port, settings.rest_port),
        "healthcheck": health(http(settings.rest_port, f"/v1/models/{RANKER}", "AVAILABLE")),
    }


def text(values: dict[str, Any]) -> str:
    """The file: a paragraph a service; what all of Airflow's share is written once."""
    shared = values["services"]["airflow-api"]["environment"]
    head = yaml_text.text({"x-airflow": shared}).replace("x-airflow:", "x-airflow: &airflow", 1)
    anchors = {"airflow": shared}
    paragraphs = [yaml_text.text({name: s}, 2, anchors) for name, s in values["services"].items()]
    rest = [yaml_text.text({name: values[name]}) for name in ("volumes", "networks")]
    return "\n".join((HEAD, head, "services:\n" + "\n".join(paragraphs), *rest))


def prepare(own: Callable[[Path, int], None]) -> None:
    """In the container `prepare`: folders, platform.json, the join's job, the model server's list, Airflow's login."""
    settings = settings_of([f"{n}={os.environ[k]}" for n in FIELDS if (k := f"MINUTEHAND_{n.upper()}") in os.environ])
    at, where, port = layout.Layout(settings), addresses(settings), ports_of(settings)
    at.make(settings)
    facts = layout.facts(settings, port, where, list(declared(settings)))
    write_json(at.folder / "platform.json", facts)
    job = services.join_job(settings, port, where, declaration_of(settings.source))
    (at.join / "join.json").write_text(json.dumps(job, indent=1))
    (at.replica(0) / "models.config").write_text(services.model_config(at, settings, 0))
    at.airflow.mkdir(0o700, exist_ok=True)
    write_private(at.airflow / "passwords.json", json.dumps({airflow.USER: os.environ[ADMIN]}))
    for path in (at.folder, *at.folder.rglob("*")):
        own(path, FLINK_UID if path == at.join or at.join in path.parents else UID)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m infra.compose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("word", nargs="?", choices=("print", "prepare"), default="print")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="a setting of the platform")
    args = parser.parse_args(argv)
    if args.word == "prepare":
        prepare(lambda path, uid: os.chown(path, uid, 0))
    else:
        sys.stdout.write(text(compose(settings_of(args.set))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
