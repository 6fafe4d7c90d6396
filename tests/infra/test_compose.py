"""docker-compose.yml is what the local platform runs: the same commands, variables, ports, versions."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import compose, layout, services
from infra.airflow import services as airflow
from infra.settings import FIELDS, PORTS, PROJECT, Settings

FILE = PROJECT / "docker-compose.yml"
TEXT = FILE.read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
SECRETS = ("POSTGRES_PASSWORD", compose.ADMIN, *compose.SECRETS)
LOCAL = compose.declared(compose.settings_of([]))
# A local service -> who is it in containers, where it is not ours of the same name.
OFFICIAL = {"kafka-format": "kafka", "kafka": "kafka", "join": "jobmanager", "mlflow": "mlflow"}
OFFICIAL |= {"model-server-0": "model-server-0"}


def test_the_file_is_what_the_platform_declares() -> None:
    assert compose.text(compose.compose(compose.settings_of([]))) == TEXT, "write it: python -m infra.compose"
    values = compose.compose(compose.settings_of(["source=kuairand", "sync_every=10s"]))
    assert yaml.safe_load(compose.text(values)) | {"x-airflow": None} == values | {"x-airflow": None}


def test_every_local_service_is_in_it_by_its_own_command() -> None:
    assert {OFFICIAL.get(name, name) for name in LOCAL} <= set(SERVICES)
    for name in set(LOCAL) - set(OFFICIAL):
        there = SERVICES[name]
        assert there["image"] == compose.OURS
        assert there["command"][0] == "python"
        assert there["command"][1:] == [w.replace(str(PROJECT), "/opt/minutehand") for w in LOCAL[name].command[1:]]
        assert ("restart" in there) != LOCAL[name].once


def test_no_machine_is_named_and_nothing_listens_but_on_loopback() -> None:
    assert str(PROJECT) not in TEXT and str(Path.home()) + "/" not in TEXT
    for name, service in SERVICES.items():
        assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in service.get("ports", ())), name
    published = [int(p.split(":")[1]) for s in SERVICES.values() for p in s.get("ports", ())]
    assert len(set(published)) == len(published)
    defaults = {FIELDS[name].metadata["default"] for name in PORTS} - {9092, 9093}
    assert set(published) == defaults | {compose.OUTSIDE_PORT}


def test_addresses_in_commands_are_services_and_their_ports() -> None:
    defaults = {FIELDS[name].metadata["default"] for name in PORTS} | {5432, 6379}
    for name, service in SERVICES.items():
        for word in service.get("command", ()):
            for host, port in re.findall(r"(?:^|//|@)([a-z][a-z0-9-]*):(\d+)", word):
                assert host in SERVICES and int(port) in defaults, (name, word)


def test_versions_are_the_locks_and_the_poms() -> None:
    lock = {p["name"]: p["version"] for p in tomllib.loads((PROJECT / "uv.lock").read_text())["package"]}
    kafka = re.search("<kafka.version>(.*)</", (PROJECT / "infra/kafka/pom.xml").read_text())
    flink = re.search("<flink.version>(.*)</", (PROJECT / "streaming/join/pom.xml").read_text())
    assert kafka and flink
    assert f"apache/kafka:{kafka[1]}" == compose.KAFKA
    assert f"flink:{flink[1]}-scala_2.12-java17" == compose.FLINK
    assert f"ghcr.io/mlflow/mlflow:v{lock['mlflow']}" == compose.MLFLOW
    docker = (PROJECT / "infra/images/Dockerfile").read_text()
    assert f"FROM apache/airflow:{lock['apache-airflow']}-python3.11 " in docker
    uv = re.search("UV_VERSION=(.*)", (PROJECT / "infra/setup.sh").read_text())
    assert uv and f"ARG UV_VERSION={uv[1]}\n" in docker
    assert f"minutehand:{lock['minutehand']}" == compose.OURS
    for service in SERVICES.values():
        assert re.search(r":v?\d+\.\d+", service["image"]), "every image is pinned"


def test_every_mount_is_a_volume_or_made_by_setup() -> None:
    volumes = yaml.safe_load(TEXT)["volumes"]
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in volumes or (PROJECT / source).is_file(), f"{name}: {mount}"
    assert "./build/join.jar:/opt/flink/usrlib/join.jar:ro" in SERVICES["jobmanager"]["volumes"]


def test_everything_that_stays_up_has_a_health_check() -> None:
    without = {n for n, s in SERVICES.items() if "restart" in s and "healthcheck" not in s}
    assert without == {"taskmanager"}  # Flink's job manager answers for it: the job is RUNNING


def test_kafka_has_the_local_settings_but_where_it_listens(tmp_path: Path) -> None:
    from infra import kafka_server

    local = kafka_server.properties(Settings(), tmp_path, 9092, 9093)
    there = SERVICES["kafka"]["environment"]
    differ = {k for k, v in local.items() if there[f"KAFKA_{k.upper().replace('.', '_')}"] != str(v)}
    assert differ == {
        "log.dirs", "controller.quorum.voters", "listeners", "advertised.listeners", "listener.security.protocol.map",
    }  # fmt: skip
    assert len(there) == len(local) + 2


def test_airflow_has_the_local_variables_but_its_addresses(tmp_path: Path) -> None:
    hidden = dict.fromkeys(airflow.KEYS, "x")
    at = {"airflow": "http://127.0.0.1:8080", "mlflow": "http://127.0.0.1:5000"}
    local = airflow.environment(Settings(), tmp_path, tmp_path / "platform.json", at, hidden)
    there = SERVICES["airflow-api"]["environment"]
    ours = {"MINUTEHAND_HEALTH_HOST", "FEAST_FS_YAML_FILE_PATH", "MINUTEHAND_REDIS", "MINUTEHAND_REGISTRY"}
    assert set(there) == set(local) | ours
    differ = {k for k in local if local[k] != there[k]} - set(airflow.KEYS)
    assert differ == {
        "AIRFLOW_HOME", "AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "AIRFLOW__API__HOST",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE",
        "MINUTEHAND_PLATFORM", "MINUTEHAND_FEATURES", "PYTHONPATH", "MLFLOW_TRACKING_URI",
    }  # fmt: skip


def test_secrets_come_from_the_environment_and_a_missing_one_is_named() -> None:
    named = set(re.findall(r"\$\{(\w+)", TEXT))
    assert named == set(SECRETS) == set(re.findall(r"\$\{(\w+):\?set \1, ", TEXT))
    # What `make check` gives to docker-compose.
    given = dict(line.split("=") for line in (PROJECT / "tests/infra/compose.env").read_text().splitlines())
    assert set(given) == named
    head = TEXT.split("\nx-airflow")[0]
    assert all(f"echo {name}=" in head for name in named), "the file's head says how to make each"


def test_feast_is_on_redis_and_postgresql_by_the_repositorys_own_file() -> None:
    environment = SERVICES["features"]["environment"]
    file = PROJECT / Path(environment["FEAST_FS_YAML_FILE_PATH"]).relative_to("/opt/minutehand")
    named = set(re.findall(r"\$\{(\w+)\}", file.read_text()))
    assert named <= set(environment) and {"MINUTEHAND_REDIS", "MINUTEHAND_REGISTRY"} <= named
    assert SERVICES["airflow-api"]["environment"]["MINUTEHAND_REGISTRY"] == environment["MINUTEHAND_REGISTRY"]
    databases = (PROJECT / "infra/images/databases.sql").read_text()
    assert "CREATE DATABASE feast;" in databases and environment["MINUTEHAND_REGISTRY"].endswith(":5432/feast")


def test_prepare_writes_what_the_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "HOME", tmp_path / "minutehand")
    monkeypatch.setenv(compose.ADMIN, "secret")
    owners: dict[str, int] = {}
    compose.prepare(lambda path, uid: owners.update({str(path.relative_to(tmp_path)): uid}))
    home = tmp_path / "minutehand"
    facts = json.loads((home / "platform.json").read_text())
    assert facts["addresses"]["kafka"] == "kafka:9092" and facts["addresses"]["trainer"] == "http://trainer:8600"
    assert (
        facts["models"]["ranker"] == {"model": "deepfm", "log": str(home / "log/ranker")}
        and facts["settings"]["source"] == "simulator"
    )
    # A browser on the host reads these; their folder must be there before they are served.
    assert facts["addresses"]["data-docs"] == "http://127.0.0.1:8592" and (home / "data_docs").is_dir()
    assert set(facts["addresses"]) == set(layout.addresses(Settings(), compose.ports_of(Settings())))
    job = json.loads((home / "join/join.json").read_text())
    assert job["bootstrap"] == "kafka:9092" and job["declaration"]["features"]
    settings = compose.settings_of([])
    config = services.model_config(layout.Layout(settings), settings, 0)
    assert (home / "models/replica-0/models.config").read_text() == config
    assert json.loads((home / "airflow/passwords.json").read_text()) == {airflow.USER: "secret"}
    assert owners["minutehand/join/state"] == compose.FLINK_UID and owners["minutehand/log"] == compose.UID
