"""docker-compose.yml is what the local platform runs: the same commands, variables, ports, versions."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import kafka_server, layout, prepare, services
from infra.airflow import services as airflow
from infra.settings import FIELDS, PORTS, PROJECT, Settings
from serving.app.address import APP_KEY

FILE = PROJECT / "docker-compose.yml"
TEXT = FILE.read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
DEFAULT_PORTS = {FIELDS[name].default for name in PORTS}
OUTSIDE_PORT = 29092  # Kafka for clients that are not in the network
OURS = "minutehand:0.1.0"
HIDDEN = ("MINUTEHAND_WRITE_TOKEN", APP_KEY, *airflow.KEYS)
SECRETS = ("POSTGRES_PASSWORD", prepare.ADMIN, *HIDDEN)
ADDED = {  # what a container needs beside the local variables
    "MINUTEHAND_HEALTH_HOST", "PYTHONPATH", "FEAST_FS_YAML_FILE_PATH", "MINUTEHAND_REDIS", "MINUTEHAND_REGISTRY",
}  # fmt: skip
ELSEWHERE = {"AIRFLOW__API__BASE_URL", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "PYTHONPATH", *HIDDEN}
SETTINGS = prepare.settings_of_containers()
LOCAL = prepare.declared(SETTINGS, dict.fromkeys(HIDDEN, "secret"))
# A local service -> who is it in containers, where it is not ours of the same name.
OFFICIAL = {"kafka-format": "kafka", "kafka": "kafka", "join": "jobmanager", "mlflow": "mlflow"}
OFFICIAL |= {"model-server-0": "model-server-0"}


def there(text: str) -> str:
    """A local word as the project's folder in our image has it."""
    return text.replace(str(PROJECT), "/opt/minutehand")


def test_every_local_service_is_in_it_by_its_own_command() -> None:
    assert {OFFICIAL.get(name, name) for name in LOCAL} <= set(SERVICES)
    for name in set(LOCAL) - set(OFFICIAL):
        ours = SERVICES[name]
        assert ours["image"] == OURS
        assert ours["command"] == ["python", *map(there, LOCAL[name].command[1:])], name
        assert ("restart" in ours) != LOCAL[name].once
        assert ("cpu_shares" in ours) == bool(LOCAL[name].nice), "what gives way locally gives way here"
        assert ours["volumes"] == [f"state:{prepare.HOME}"]
    assert SERVICES["prepare"]["command"] == ["python", "-m", "infra.prepare"]
    assert SERVICES["mlflow"]["command"] == ["python", *map(there, LOCAL["mlflow"].command[1:])]
    assert SERVICES["mlflow"]["working_dir"] == str(LOCAL["mlflow"].folder)
    job = f"{prepare.HOME}/join/join.json"
    assert SERVICES["jobmanager"]["command"] == ["standalone-job", "--job-classname", services.JOIN_MAIN, job]
    (command,) = SERVICES["model-server-0"]["command"]
    served = layout.Layout(SETTINGS).served(0)
    assert command.startswith(f"until ls -d {served}/[0-9]* "), "the stock server does not start without a version"
    assert command.endswith(f"; exec {' '.join(LOCAL['model-server-0'].command)}")


def test_every_local_service_has_its_variables() -> None:
    for name, service in LOCAL.items():
        if name in ("kafka-format", "kafka", "join"):
            continue
        environment = SERVICES[OFFICIAL.get(name, name)].get("environment", {})
        local = {k: there(v) for k, v in service.env.items()}
        assert {k: environment.get(k) for k in local.keys() - ELSEWHERE} == {
            k: v for k, v in local.items() if k not in ELSEWHERE
        }, name
        assert environment.keys() - local.keys() <= ADDED | {"MLFLOW_SERVER_ALLOWED_HOSTS"}, name
        for secret in local.keys() & set(HIDDEN):
            assert environment[secret].startswith(f"${{{secret}:?"), name
        if name not in OFFICIAL:
            assert (environment["MINUTEHAND_HEALTH_HOST"], environment["PYTHONPATH"]) == ("0.0.0.0", "/opt/minutehand")


def test_every_service_waits_for_what_it_comes_after_locally() -> None:
    waits = {name: set(service.get("depends_on", ())) for name, service in SERVICES.items()}
    for name, service in LOCAL.items():
        if name not in ("kafka-format", "kafka", "airflow-api"):  # the volume of Data Docs is there before both
            here = OFFICIAL.get(name, name)
            reached = waits[here] | {other for first in waits[here] for other in waits[first]}
            assert {OFFICIAL.get(other, other) for other in service.after} <= reached, name
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            ends = other == "prepare" or (other in LOCAL and LOCAL[other].once)
            started = name in ("taskmanager", "model-server-0")  # these two wait by themselves
            wanted = "service_completed_successfully" if ends else "service_started" if started else "service_healthy"
            assert wait["condition"] == wanted, (name, other)


def test_the_join_has_the_local_settings() -> None:
    for name in ("jobmanager", "taskmanager"):
        properties = yaml.safe_load(SERVICES[name]["environment"]["FLINK_PROPERTIES"])
        assert properties["rest.port"] == SETTINGS.flink_port
        assert properties["taskmanager.numberOfTaskSlots"] == SETTINGS.join_parallelism
        assert properties["taskmanager.memory.process.size"] == f"{(SETTINGS.join_memory >> 20) + 768}m"


def test_no_machine_is_named_and_nothing_listens_but_on_loopback() -> None:
    assert str(PROJECT) not in TEXT and str(Path.home()) + "/" not in TEXT
    for name, service in SERVICES.items():
        assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in service.get("ports", ())), name
    published = [int(p.split(":")[1]) for s in SERVICES.values() for p in s.get("ports", ())]
    assert len(set(published)) == len(published)
    defaults = DEFAULT_PORTS - {9092, 9093}
    assert set(published) == defaults | {OUTSIDE_PORT}


def test_addresses_in_commands_are_services_and_their_ports() -> None:
    defaults = DEFAULT_PORTS | {5432, 6379}
    for name, service in SERVICES.items():
        for word in service.get("command", ()):
            for host, port in re.findall(r"(?:^|//|@)([a-z][a-z0-9-]*):(\d+)", word):
                assert host in SERVICES and int(port) in defaults, (name, word)


def test_versions_are_the_locks_and_the_poms() -> None:
    lock = {p["name"]: p["version"] for p in tomllib.loads((PROJECT / "uv.lock").read_text())["package"]}
    kafka = re.search("<kafka.version>(.*)</", (PROJECT / "infra/kafka/pom.xml").read_text())
    flink = re.search("<flink.version>(.*)</", (PROJECT / "streaming/join/pom.xml").read_text())
    assert kafka and flink
    assert f"apache/kafka:{kafka[1]}" == SERVICES["kafka"]["image"]
    assert f"flink:{flink[1]}-scala_2.12-java17" == SERVICES["jobmanager"]["image"] == SERVICES["taskmanager"]["image"]
    assert f"ghcr.io/mlflow/mlflow:v{lock['mlflow']}" == SERVICES["mlflow"]["image"]
    tested = re.search('PREVIOUS = "(.*)"', (PROJECT / "tests/serving/test_export_previous_tf.py").read_text())
    assert tested and f"tensorflow/serving:{tested[1]}" == SERVICES["model-server-0"]["image"], "the export runs there"
    docker = (PROJECT / "infra/images/Dockerfile").read_text()
    assert f"FROM apache/airflow:{lock['apache-airflow']}-python3.11 " in docker
    uv = re.search("UV_VERSION=(.*)", (PROJECT / "infra/setup.sh").read_text())
    assert uv and f"ARG UV_VERSION={uv[1]}\n" in docker
    assert f"minutehand:{lock['minutehand']}" == OURS
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
    for name, service in SERVICES.items():
        for port in re.findall(r"/dev/tcp/127\.0\.0\.1/(\d+)", str(service.get("healthcheck"))):
            assert f"127.0.0.1:{port}:{port}" in service["ports"], name


def test_kafka_has_the_local_settings_but_where_it_listens(tmp_path: Path) -> None:
    local = kafka_server.properties(Settings(), tmp_path, 9092, 9093)
    environment = SERVICES["kafka"]["environment"]
    differ = {k for k, v in local.items() if environment[f"KAFKA_{k.upper().replace('.', '_')}"] != str(v)}
    assert differ == {
        "log.dirs", "controller.quorum.voters", "listeners", "advertised.listeners", "listener.security.protocol.map",
    }  # fmt: skip
    assert environment["KAFKA_HEAP_OPTS"] == f"-Xmx{SETTINGS.kafka_memory >> 10}k"
    assert len(environment) == len(local) + 1


def test_airflow_has_the_local_variables_but_its_addresses(tmp_path: Path) -> None:
    at = {"airflow": "http://127.0.0.1:8080", "mlflow": "http://127.0.0.1:5000"}
    local = airflow.environment(Settings(), tmp_path, at, dict.fromkeys(airflow.KEYS, "x"))
    environment = SERVICES["airflow-api"]["environment"]
    assert set(environment) == set(local) | ADDED
    differ = {k for k in local if local[k] != environment[k]} - set(airflow.KEYS)
    assert differ == {
        "AIRFLOW_HOME", "AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "AIRFLOW__API__HOST",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER", "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY",
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
    monkeypatch.setattr(prepare, "HOME", tmp_path / "minutehand")
    monkeypatch.setenv(prepare.ADMIN, "secret")
    owners: dict[str, int] = {}
    prepare.prepare(lambda path, uid: owners.update({str(path.relative_to(tmp_path)): uid}))
    home = tmp_path / "minutehand"
    facts = json.loads((home / "platform.json").read_text())
    assert facts["addresses"]["kafka"] == "kafka:9092" and facts["addresses"]["trainer"] == "http://trainer:8600"
    assert facts["models"]["ranker"]["log"] == str(home / "log/ranker") and facts["settings"]["source"] == "simulator"
    # A browser on the host reads these; their folder must be there before they are served.
    assert facts["addresses"]["data-docs"] == "http://127.0.0.1:8592" and (home / "data_docs").is_dir()
    assert set(facts["addresses"]) == set(prepare.site_of(Settings(), {}).addresses)
    job = json.loads((home / "join/join.json").read_text())
    assert job["bootstrap"] == "kafka:9092" and job["declaration"]["features"]
    lists = (home / "models/replica-0/models.config").read_text()
    settings = prepare.settings_of_containers()
    assert lists == services.model_config(settings, 0)
    assert f'base_path: "{home}/models/replica-0/ranker/served"' in lists
    assert json.loads((home / "airflow/passwords.json").read_text()) == {airflow.USER: "secret"}
    assert owners["minutehand/join/state"] == prepare.FLINK_UID and owners["minutehand/log/ranker"] == prepare.UID
