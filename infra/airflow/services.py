"""Airflow as four processes of the platform, over the DAGs of dags/.

airflow-migrate -> airflow-api, airflow-scheduler (runs the tasks), airflow-dag-processor, airflow-triggerer

Not `airflow standalone`, which leaves its children behind. All of them give way to the minute loop by NICE.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.disk import replace
from infra.layout import Layout
from infra.settings import PROJECT, Settings
from infra.supervise import checks
from infra.supervise.service import Service

USER = "admin"
NICE = 10
PARALLELISM = 3  # tasks at once: while one waits for the others, two use two cores
COMPONENTS = {"scheduler": "scheduler", "dag-processor": "dag_processor", "triggerer": "triggerer"}
KEYS: dict[str, Callable[[], str]] = {
    "AIRFLOW__CORE__FERNET_KEY": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "AIRFLOW__API_AUTH__JWT_SECRET": lambda: secrets.token_hex(32),
    "AIRFLOW__API__SECRET_KEY": lambda: secrets.token_hex(32),
}


def _private(path: Path, make: Mapping[str, str]) -> dict[str, str]:
    """The object in a file that only its owner can read. Writes `make` if there is no file."""
    if not path.is_file():
        path.parent.mkdir(0o700, parents=True, exist_ok=True)  # Airflow's database in it holds connections
        replace(path, json.dumps(make).encode(), 0o600)
    values: dict[str, str] = json.loads(path.read_text())
    return values


def keys(folder: Path) -> dict[str, str]:
    """The keys that all processes share: from the environment, else from `folder`, where they are made once."""
    made = _private(folder / "keys.json", {name: make() for name, make in KEYS.items()})
    return {name: os.environ.get(name) or made[name] for name in KEYS}


def password(folder: Path) -> str:
    """The password of USER. It is made once, before Airflow, which reads the same file, makes and prints its own."""
    return _private(folder / "passwords.json", {USER: secrets.token_urlsafe(12)})[USER]


def login(folder: Path, url: str) -> str:
    """A line with the address of Airflow's page, and the user and password for it."""
    return f"Airflow: {url}  user {USER}, password {password(folder)}"


def settings_of(url: str, host: str, port: int, database: str, dags: Path) -> dict[str, str]:
    """Airflow's settings that are no secrets, by AIRFLOW__SECTION__NAME. `url` is the address of its page."""
    chosen = {
        "CORE__DAGS_FOLDER": dags,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": PARALLELISM,
        "CORE__LOAD_EXAMPLES": False,
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        # Airflow does not derive this one from the API server's port.
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "API__BASE_URL": url,
        "API__HOST": host,
        "API__PORT": port,
        "API__WORKERS": 1,
        "DATABASE__SQL_ALCHEMY_CONN": database,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 5,
        "LOGGING__COLORED_CONSOLE_LOG": False,
        "LOGGING__UVICORN_LOGGING_LEVEL": "WARNING",  # else a line for each health check
        "LOGGING__NAMESPACE_LEVELS": "airflow.dag_processing.manager=WARNING",  # else three lines each five seconds
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    return {f"AIRFLOW__{name}": str(value) for name, value in chosen.items()}


def secrets_of(folder: Path) -> dict[str, str]:
    """The keys. Makes the login's file, too."""
    password(folder)
    return keys(folder)


def environment(
    settings: Settings, folder: Path, addresses: Mapping[str, str], secrets: Mapping[str, str]
) -> dict[str, str]:
    """The variables of Airflow's processes, and so of each task: its settings, and those that find the platform."""
    url, database = addresses["airflow"], settings.airflow_db.replace("postgresql://", "postgresql+psycopg2://", 1)
    if database == "sqlite":
        database = f"sqlite:///{quote(str(folder / 'airflow.db'))}"
    return {
        "AIRFLOW_HOME": str(folder),
        **settings_of(url, settings.host, int(url.rpartition(":")[2]), database, PROJECT / "dags"),
        # Airflow does not expand the defaults of these two if the name of its home has %.
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(folder / "logs/dag_processor"),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        **{name: secrets[name] for name in KEYS},
        "PYTHONWARNINGS": "ignore:Using `httpx`",  # Airflow's own use of Starlette
        "MINUTEHAND_PLATFORM": str(Layout(settings).facts),
        "MINUTEHAND_FEATURES": str(Layout(settings).features),
        "MINUTEHAND_SOURCE": settings.source,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH")))),
        **settings.tls_environment(),
        **({"MLFLOW_TRACKING_URI": addresses["mlflow"]} if "mlflow" in addresses else {}),
    }


def command(name: str) -> list[str]:
    """The arguments of `python` for one process: migrate, api, or one of COMPONENTS."""
    if name == "migrate":
        return ["-m", "infra.airflow.migrate"]
    words = {
        "api": ["api-server"],
        # No log server: the API server reads the logs of tasks from the same folder.
        "scheduler": ["scheduler", "--skip-serve-logs"],
        "triggerer": ["triggerer", "--skip-serve-logs"],
    }
    return ["-m", "airflow", *words.get(name, [name])]


def services(settings: Settings, addresses: Mapping[str, str], secrets: Mapping[str, str]) -> list[Service]:
    """Airflow's processes; `secrets` holds KEYS."""
    env, url = environment(settings, Layout(settings).airflow, addresses, secrets), addresses["airflow"]
    port = int(url.rpartition(":")[2])

    def service(name: str, **more: Any) -> Service:
        return Service(f"airflow-{name}", [sys.executable, *command(name)], env=env, nice=NICE, **more)

    migrated, healthy = ("airflow-migrate",), checks.http_ok(f"{url}/api/v2/monitor/health")
    return [
        service("migrate", once=True),
        # Its pages link to data-docs.
        service("api", after=(*migrated, "data-docs"), ready=healthy, ports=(port,), address=url),
        *(
            service(
                name,
                after=migrated,
                ready=checks.airflow_component(url, key),
            )
            for name, key in COMPONENTS.items()
        ),
    ]
