"""Writes what the containers of docker-compose.yml read, into their shared volume, before they start.

    python -m infra.prepare       # in the container `prepare`, as root; settings by MINUTEHAND_<NAME>

Folders, platform.json, the join's job, the model server's list of models and Airflow's login; each with its owner.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra import layout, services
from infra.airflow import services as airflow
from infra.platform import declaration_of
from infra.settings import FIELDS, PORTS, Settings, load
from infra.supervise.manager import Service
from infra.supervise.processes import write_json, write_private

HOME = Path("/var/lib/minutehand")  # the volume that all of ours share
HOSTS = {"join": "jobmanager", "model-server-0-rest": "model-server-0", "airflow": "airflow-api"}
HOSTS |= {"data-docs": "127.0.0.1"}  # nobody in the network reads them: a person's browser does, on the host
ADMIN = "MINUTEHAND_AIRFLOW_PASSWORD"
UID, FLINK_UID = 50000, 9999  # of apache/airflow and of flink


def settings_of_containers() -> Settings:
    """The settings as the containers see them; ports are the defaults, each in a container of its own."""
    fixed: dict[str, Any] = {
        "name": HOME.name,
        "var": str(HOME.parent),
        "host": "0.0.0.0",
        "replicas": 1,
        "airflow_db": "postgresql://minutehand@postgres:5432/airflow",
        "model_server": "/usr/bin/tensorflow_model_server",
    }
    switches = dict.fromkeys(("mlflow", "airflow", "archive", "feast"), True)
    return load().model_copy(update=fixed | switches | {name: FIELDS[name].default for name in PORTS})


def ports_of(settings: Settings) -> dict[str, int]:
    return {name: getattr(settings, name) for name in PORTS}


def addresses(settings: Settings) -> dict[str, str]:
    """As infra.layout.addresses, by the containers' names."""
    here = layout.addresses(settings, ports_of(settings))
    return {name: re.sub(r"127\.0\.0\.1|0\.0\.0\.0", HOSTS.get(name, name), at) for name, at in here.items()}


def declared(settings: Settings, secrets: Mapping[str, str]) -> dict[str, Service]:
    """The services of the local platform, with the network's addresses."""
    local = services.declare(settings, ports_of(settings), addresses(settings), secrets, "{}")
    return {service.name: service for service in local}


def prepare(own: Callable[[Path, int], None]) -> None:
    settings = settings_of_containers()
    at, where, ports = layout.Layout(settings), addresses(settings), ports_of(settings)
    at.make(settings)
    names = list(declared(settings, defaultdict(str)))
    write_json(at.facts, layout.facts(settings, ports, where, names))
    job = services.join_job(settings, ports, where, declaration_of(settings.source))
    (at.join / "join.json").write_text(json.dumps(job, indent=1))
    (at.replica(0) / "models.config").write_text(services.model_config(at, settings, 0))
    at.airflow.mkdir(0o700, exist_ok=True)
    write_private(at.airflow / "passwords.json", json.dumps({airflow.USER: os.environ[ADMIN]}))
    for path in (at.folder, *at.folder.rglob("*")):
        own(path, FLINK_UID if path == at.join or at.join in path.parents else UID)


def main() -> int:
    prepare(lambda path, uid: os.chown(path, uid, 0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
