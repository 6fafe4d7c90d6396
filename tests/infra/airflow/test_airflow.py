"""Airflow's part of the platform: its environment, its secrets, and its own word on its processes."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from sqlalchemy import make_url

from infra.airflow import services as airflow
from infra.settings import PROJECT, Settings
from infra.supervise import checks
from tests.support import ODD_NAME

WHERE = {"airflow": "http://127.0.0.1:18080", "mlflow": "http://127.0.0.1:15000"}
HIDDEN = {name: f"secret {name}" for name in airflow.KEYS}


def environment(folder: Path, **settings: object) -> dict[str, str]:
    return airflow.environment(Settings().with_(var=str(folder), **settings), folder, WHERE, HIDDEN)


def test_every_address_follows_the_port(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert env["AIRFLOW__API__BASE_URL"] == WHERE["airflow"]
    assert env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == f"{WHERE['airflow']}/execution/"
    assert (env["AIRFLOW__API__HOST"], env["AIRFLOW__API__PORT"]) == ("127.0.0.1", "18080")
    assert env["AIRFLOW__CORE__DAGS_FOLDER"] == str(PROJECT / "dags")
    assert env["MLFLOW_TRACKING_URI"] == WHERE["mlflow"]
    assert env["MINUTEHAND_PLATFORM"] == str(tmp_path / "local" / "platform.json")
    assert env["PYTHONPATH"].split(":")[0] == str(PROJECT)


def test_sqlite_by_default_and_postgresql_by_one_setting(tmp_path: Path) -> None:
    name = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    folder = tmp_path / ODD_NAME
    assert make_url(environment(folder)[name]).database == f"{folder}/airflow.db"
    given = environment(tmp_path, airflow_db="postgresql://u:p@db:5432/airflow")
    assert given[name] == "postgresql+psycopg2://u:p@db:5432/airflow"


def test_secrets_are_made_once_for_their_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in airflow.KEYS:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "airflow"
    made, password = airflow.keys(home), airflow.password(home)
    assert len(base64.urlsafe_b64decode(made["AIRFLOW__CORE__FERNET_KEY"])) == 32
    assert len(set(made.values())) == 3 and len(password) >= 16
    assert (airflow.keys(home), airflow.password(home)) == (made, password)
    for file in ("keys.json", "passwords.json"):
        assert (home / file).stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert airflow.keys(tmp_path / "other") != made
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "given")
    assert airflow.keys(home) == {**made, "AIRFLOW__CORE__FERNET_KEY": "given"}
    assert airflow.login(home, "http://h:1") == f"Airflow: http://h:1  user admin, password {password}"


def test_the_processes_and_their_order(tmp_path: Path) -> None:
    found = airflow.services(Settings().with_(var=str(tmp_path)), WHERE, HIDDEN)
    assert [s.name for s in found] == [f"airflow-{n}" for n in ("migrate", "api", *airflow.COMPONENTS)]
    assert [s.after for s in found] == [(), ("airflow-migrate", "data-docs"), *[("airflow-migrate",)] * 3]
    assert all(s.nice == airflow.NICE > 0 and s.command[1:3] == ["-m", "airflow"] for s in found[1:])
    assert found[0].command[1:] == ["-m", "infra.airflow.migrate"]
    assert found[0].once and not any("standalone" in s.command for s in found)


@pytest.fixture
def health() -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    """An address that answers what the test says of Airflow's processes."""
    says: dict[str, dict[str, str]] = {}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(says).encode()
            self.send_response(200 if self.path == "/api/v2/monitor/health" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", says
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_process_is_ready_by_its_heartbeat_and_silent_without(health: tuple[str, dict[str, dict[str, str]]]) -> None:
    url, says = health
    ready = checks.airflow_component(url, "scheduler")
    assert ready() == "scheduler is not known yet"
    says["scheduler"] = {"status": "unhealthy"}
    assert ready() == "scheduler is unhealthy" and isinstance(ready(), checks.Silence)
    says["scheduler"] = {"status": "healthy"}
    assert ready() == ""


def test_an_api_server_that_is_away_is_not_held_against_the_others() -> None:
    url = "http://127.0.0.1:1"
    reason = checks.airflow_component(url, "scheduler")()
    assert "refused" in reason and not isinstance(reason, checks.Silence)
