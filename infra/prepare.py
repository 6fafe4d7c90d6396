"""Writes the files that the containers of docker-compose.yml read into their shared volume, before they start.

    python -m infra.prepare       # in the container `prepare`, as root; settings by MINUTEHAND_<NAME>

These are platform.json, the join's job, the model server's list of models and Airflow's login, each with its owner.
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

from common import process
from infra import layout, services
from infra.airflow import services as airflow
from infra.platform import declaration_of
from infra.settings import FIELDS, PORTS, Settings, load
from infra.supervise.processes import write_json
from infra.supervise.service import Service

HOME = Path("/var/lib/minutehand")  # the volume that all our containers share
HOSTS = {"join": "jobmanager", "model-server-0-rest": "model-server-0", "airflow": "airflow-api"}
HOSTS |= {"data-docs": "127.0.0.1"}  # only a browser on the host reads them
ADMIN = "MINUTEHAND_AIRFLOW_PASSWORD"
UID, FLINK_UID = 50000, 9999  # of apache/airflow and of flink


def settings_of_containers() -> Settings:
    """The settings as the containers see them. Ports are the defaults, since each is in a container of its own."""
    fixed: dict[str, Any] = {
        "name": HOME.name,
        "var": str(HOME.parent),
        "host": "0.0.0.0",
        "replicas": 1,
        "airflow_db": "postgresql://minutehand@postgres:5432/airflow",
        "model_server": "/usr/bin/tensorflow_model_server",
    }
    switches = dict.fromkeys(("mlflow", "airflow", "archive", "feast", "app"), True)
    return load().model_copy(update=fixed | switches | {name: FIELDS[name].default for name in PORTS})


def site_of(settings: Settings, secrets: Mapping[str, str]) -> services.Site:
    """The platform with the containers' names as hosts."""
    ports = {name: getattr(settings, name) for name in PORTS}
    local = layout.addresses(settings, ports)
    addresses = {name: re.sub(r"127\.0\.0\.1|0\.0\.0\.0", HOSTS.get(name, name), url) for name, url in local.items()}
    return services.Site(settings, ports, addresses, secrets)


def declared(settings: Settings, secrets: Mapping[str, str]) -> dict[str, Service]:
    """The services of a local platform, with the addresses of the containers' network."""
    return {service.name: service for service in services.declare(site_of(settings, secrets), "{}")}


def prepare(own: Callable[[Path, int], None]) -> None:
    settings = settings_of_containers()
    site, files = site_of(settings, {}), layout.Layout(settings)
    files.make(settings)
    names = list(declared(settings, defaultdict(str)))
    write_json(files.facts, layout.facts(settings, site.ports, site.addresses, names))
    job = services.join_job(site, declaration_of(settings.source, files.states()))
    (files.join / "join.json").write_text(json.dumps(job, indent=1))
    (files.replica(0) / "models.config").write_text(services.model_config(settings, 0))
    files.airflow.mkdir(0o700, exist_ok=True)
    write_json(files.airflow / "passwords.json", {airflow.USER: os.environ[ADMIN]})
    for path in (files.folder, *files.folder.rglob("*")):
        own(path, FLINK_UID if path == files.join or files.join in path.parents else UID)


def main(argv: list[str] | None = None) -> int:
    process.Arguments("infra.prepare", __doc__ or "").parse_args(argv)
    return process.run(lambda: prepare(lambda path, uid: os.chown(path, uid, 0)))


if __name__ == "__main__":
    sys.exit(main())
