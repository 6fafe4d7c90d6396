"""Airflow on PostgreSQL: its four processes, a run by the clock, a backfill, a second start; and what is refused."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from infra.airflow import migrate
from infra.airflow import services as airflow
from infra.airflow.rest import Airflow, AirflowError
from infra.platform import Platform
from infra.settings import PORTS, Settings
from tests.support.ports import free_port
from tests.support.servers import PASSWORD, Postgres
from tests.support.wait import until

DAG = "materialize_features"  # its rows may be none
WORDS = (PASSWORD, quote(PASSWORD, safe=""))


def refused(address: str) -> subprocess.CompletedProcess[str]:
    name = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    environment = {**os.environ, name: address.replace("postgresql:", "postgresql+psycopg2:")}
    words = [sys.executable, "-m", "infra.airflow.migrate"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)


def test_a_wrong_password_is_one_line_that_names_the_setting_and_holds_none(postgres: Postgres) -> None:
    wrong = "s3cret/%wrong"
    done = refused(postgres.url("postgres", wrong))
    said = f"airflow_db is postgresql://minutehand:***@127.0.0.1:{postgres.port}/postgres, which cannot be used: "
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert "password authentication failed" in done.stderr
    assert not any(word in done.stdout + done.stderr for word in (wrong, quote(wrong, safe="")))


def test_other_databases_that_do_not_do(postgres: Postgres) -> None:
    assert migrate.refusal(postgres.url("postgres")) == ""
    assert 'database "nowhere" does not exist' in migrate.refusal(postgres.url("nowhere"))
    unreachable = migrate.refusal(f"postgresql://u:{WORDS[1]}@127.0.0.1:{free_port()}/airflow")
    assert "Connection refused" in unreachable and not any(word in unreachable for word in WORDS)
    address = postgres.database("others")
    postgres.ask("others", "CREATE ROLE guest LOGIN PASSWORD 'guest'")
    guest = address.replace(f"minutehand:{WORDS[1]}", "guest:guest")
    if postgres.ask("others", "SELECT has_schema_privilege('guest', 'public', 'CREATE')") == [(True,)]:
        postgres.ask("others", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # as PostgreSQL 15 and later do
    assert migrate.refusal(guest) == "guest may make no tables there (GRANT CREATE ON SCHEMA public TO guest)"


def wait_for(postgres: Postgres, query: str, answer: list[tuple[Any, ...]]) -> None:
    """Asked of the database: the API server of a busy machine is busy enough."""

    def answered() -> bool:
        rows = postgres.ask("airflow", query)
        assert not any("failed" in row for row in rows), rows
        return rows == answer

    until(answered, f"{query} -> {answer}", 300)


def backfill(platform: Platform, postgres: Postgres) -> None:
    """One day, as the page asks for it; of a busy machine three times, if it was not heard."""
    days = {"from_date": "2022-05-07T00:00:00Z", "to_date": "2022-05-08T00:00:00Z"}
    asked = {"dag_id": DAG, **days, "run_backwards": False, "dag_run_conf": {}, "max_active_runs": 1}
    for _ in range(3):
        try:
            ask = Airflow(platform.address("airflow"), airflow.USER, airflow.password(platform.layout.airflow))
            ask.call("/api/v2/backfills", asked)
            return
        except AirflowError as e:
            assert "timed out" in str(e), e
            if postgres.ask("airflow", "SELECT id FROM backfill"):
                return


def command_lines(pid: int) -> list[str]:
    """Of all descendants that live."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture
def platform(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.setenv("MINUTEHAND_DAILY", "true")
    free = dict.fromkeys(PORTS, 0)
    return Platform(Settings().with_(var=str(tmp_path), airflow_db=postgres.database("airflow"), **free))


@pytest.mark.timeout(600)
def test_airflow_on_postgresql(platform: Platform, postgres: Postgres) -> None:
    with platform:
        platform.start(["airflow-api", "airflow-dag-processor"])
        wait_for(postgres, "SELECT count(*) FROM dag", [(5,)])
        assert postgres.ask("airflow", "SELECT count(*) FROM import_error") == [(0,)]
        # The others would run too, by the clock, on a platform that is not there.
        postgres.ask("airflow", f"UPDATE dag SET is_paused = true WHERE dag_id <> '{DAG}'")
        platform.start_off(["airflow-scheduler", "airflow-triggerer"])
        backfill(platform, postgres)
        runs = "SELECT run_type, state FROM dag_run ORDER BY run_type"
        wait_for(postgres, runs, [("backfill", "success"), ("scheduled", "success")])
        begin = "SELECT data_interval_start::date::text FROM dag_run WHERE run_type = 'backfill'"
        assert postgres.ask("airflow", begin) == [("2022-05-07",)]

        started = command_lines(platform.state()["sentinel"][0])
        assert len(started) > 4 and not any(word in line for line in started for word in WORDS)
        holding = {
            path.name: oct(path.stat().st_mode & 0o777)
            for path in platform.folder.rglob("*")
            if path.is_file() and any(word.encode() in path.read_bytes() for word in WORDS)
        }
        assert holding == {"settings.toml": "0o600"}  # what `up` was given

        platform.stop()
        platform.start(["airflow-migrate"])
        assert platform.ready("airflow-migrate") and platform.service("airflow-migrate")["restarts"] == 0
        assert postgres.ask("airflow", runs) == [("backfill", "success"), ("scheduled", "success")]
