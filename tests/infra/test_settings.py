"""Settings: where they come from, what is refused and how it is said; ports that move."""

from __future__ import annotations

import json
import socket
import tomllib
from pathlib import Path

import pytest

from infra import ports
from infra.settings import FIELDS, PROJECT, SettingError, Settings, load
from tests.support.ports import resolved


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without settings; a test adds its own."""
    for name in FIELDS:
        monkeypatch.delenv(f"MINUTEHAND_{name.upper()}", raising=False)
    return monkeypatch


def as_default(**values: int) -> Settings:
    """Settings with other values that nobody set."""
    return Settings.from_dict(values)


def test_the_file_shows_every_setting_with_its_default() -> None:
    lines = (PROJECT / "minutehand.toml").read_text().splitlines()
    shown = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines if " = " in line))
    assert list(shown) == list(FIELDS)
    assert {**Settings().with_(**shown).as_dict(), "given": []} == Settings().as_dict()
    for line, f in zip([line for line in lines if " = " in line], FIELDS.values(), strict=True):
        assert line.endswith(f"# {f.description}")


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path, environ: pytest.MonkeyPatch) -> None:
    file = tmp_path / "s.toml"
    file.write_text('sync_every = "5s"\nreplicas = 2\nsalt = "file"\n')
    for name, value in {"REPLICAS": "3", "SALT": "environment", "DATA": "/somewhere"}.items():
        environ.setenv(f"MINUTEHAND_{name}", value)
    settings = load(file, ["salt=flag=1"])
    assert (settings.sync_every_ms, settings.replicas, settings.salt) == (5000, 3, "flag=1")
    assert settings.given == {"sync_every", "replicas", "salt"}
    assert settings.pi == Settings().pi
    assert Settings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


@pytest.mark.parametrize(
    ("given", "milliseconds"), [("500ms", 500), ("1s", 1000), ("1.5m", 90_000), ("2 h", 7_200_000), ("0.25s", 250)]
)
def test_durations(given: str, milliseconds: int) -> None:
    assert Settings().with_(sync_every=given).sync_every_ms == milliseconds


@pytest.mark.parametrize(("sync_every", "checkpoint"), [("100ms", 200), ("1s", 200), ("2s", 400), ("60s", 1000)])
def test_the_join_commits_each_fifth_of_sync_every(sync_every: str, checkpoint: int) -> None:
    assert Settings().with_(sync_every=sync_every).checkpoint_ms == checkpoint


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("sync_every=1x", ["sync_every is '1x'", "500ms, 60s", "at least 100ms"]),
        ("sync_every=10ms", ["sync_every is '10ms'", "at least 100ms"]),
        ("sync_every=60", ["sync_every is '60'", "500ms, 60s"]),
        ("pi=0", ["pi is '0'", "at least 1e-06, at most 1"]),
        ("pi=nan", ["pi is 'nan'", "at least 1e-06, at most 1"]),
        ("replicas=0", ["replicas is '0'", "a whole number, at least 1, at most 64"]),
        ("replicas=1.5", ["replicas is '1.5'", "whole number"]),
        ("dense_rate=-1", ["dense_rate is '-1'", "source (what the source declares), or a number, at least 0"]),
        ("dense_rate=nan", ["dense_rate is 'nan'"]),
        ("dense_every=0.5", ["dense_every is '0.5'", "or a whole number, at least 1"]),
        ("kafka_port=65536", ["kafka_port is '65536'", "at least 0, at most 65535"]),
        ("mlflow=maybe", ["mlflow is 'maybe'", "true or false"]),
        ("airflow_db=mysql://x/y", ["airflow_db is 'mysql://x/y'", "sqlite, or postgresql://user"]),
        ("name=../x", ["name is '../x'", "letters, digits"]),
        ("name=..", ["name is '..'"]),
        ("model_server=/nowhere", ["model_server is '/nowhere'", "auto, own"]),
        ("tls=/nowhere.pem", ["tls is '/nowhere.pem'", "the path of a file that can be read, or empty"]),
        (f"ssl_config_file={__file__}", ["tls is ''", f"ssl_config_file is '{__file__}'", "both"]),
        ("kafka_memory=1t", ["kafka_memory is '1t'", "256m or 2g"]),
        ("kafka_memory=1k", ["kafka_memory is '1k'", "at least 128m"]),
        ("sync_evry=1s", ["no setting 'sync_evry'", "did you mean sync_every?"]),
        ("zzz=1", ["no setting 'zzz'", "allowed are name, var, source"]),
        ("pi", ["--set is 'pi'", "name=value"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(flag: str, said: list[str]) -> None:
    with pytest.raises(SettingError) as e:
        load(flags=[flag])
    for part in said:
        assert part in str(e.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:p%40%2Fss@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        (
            "postgresql://h/db?user=u&password=p&sslmode=require",
            "postgresql://h/db?user=u&password=***&sslmode=require",
        ),
        ("sqlite", "sqlite"),
    ],
)
def test_a_password_is_kept_and_never_shown(address: str, shown: str, environ: pytest.MonkeyPatch) -> None:
    environ.setenv("MINUTEHAND_AIRFLOW_DB", address)
    settings = load()
    assert settings.airflow_db == settings.as_dict()["airflow_db"] == address
    assert settings.shown() == settings.as_dict() | {"airflow_db": shown}
    if shown == address:
        assert load(flags=[f"airflow_db={address}"]).airflow_db == address
    else:
        with pytest.raises(SettingError, match="everybody can read a command line.*MINUTEHAND_AIRFLOW_DB") as e:
            load(flags=[f"airflow_db={address}"])
        assert "p%40" not in str(e.value) and "=p&" not in str(e.value)


@pytest.mark.parametrize("address", ["postgresql://u:p@a/s@h/db", "postgresql://u:p%zz@h/db", "postgres://u:p@h/db"])
def test_a_wrong_address_is_said_without_its_password(address: str, environ: pytest.MonkeyPatch) -> None:
    environ.setenv("MINUTEHAND_AIRFLOW_DB", address)
    with pytest.raises(SettingError, match="allowed is sqlite, or .* as in %40") as e:
        load()
    assert f"environment: airflow_db is '{address.partition(':')[0]}://u:***@h/db'; " in str(e.value)


def test_a_wrong_file_is_named(tmp_path: Path, environ: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match=r"none\.toml cannot be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(SettingError, match=r"cannot be read: Is a directory"):
        load(tmp_path)
    file = tmp_path / "s.toml"
    for text, error in {
        "pi = 2\n": r"s\.toml: pi is 2; allowed is a number",
        "pi = true\n": "pi is True; allowed",
        "replicas = true\n": "replicas is True; allowed is a whole number",
        "sync_every = nan\n": "sync_every is nan; allowed is a duration",
        f"sync_every = {10**400}\n": "sync_every is 1000",
        "sync_every = inf\n": "sync_every is inf; allowed is a duration",
        "pi = nan\n": "pi is nan; allowed is a number",
        "_env_prefix = 'X'\n": r"s\.toml: there is no setting '_env_prefix'",
        "pi 2\n": "is not TOML",
    }.items():
        file.write_text(text)
        with pytest.raises(SettingError, match=error) as e:
            load(file)
        assert "\n" not in str(e.value)
    file.write_bytes(b'salt = "\xff"\n')
    with pytest.raises(SettingError, match=r"s\.toml is not TOML: .*utf-8"):
        load(file)
    environ.setenv("MINUTEHAND_PI", "x")
    with pytest.raises(SettingError, match="environment: pi is 'x'"):
        load()


def listener() -> tuple[socket.socket, int]:
    s = socket.create_server(("127.0.0.1", 0))
    return s, s.getsockname()[1]


def test_a_taken_port_moves_unless_somebody_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    s, port = listener()
    with s:
        # The same port as a default and as somebody's choice.
        settings = as_default(kafka_port=port)
        moved = resolved(settings)["kafka_port"]
        assert moved > port and ports.is_free("127.0.0.1", moved)
        with pytest.raises(SettingError, match=f"kafka_port is {port}, which is taken on 127.0.0.1"):
            resolved(Settings().with_(kafka_port=port))
    assert resolved(Settings().with_(kafka_port=port))["kafka_port"] == port


def test_each_service_and_replica_has_a_port_of_its_own() -> None:
    zero = {name: 0 for name in ports.PORTS}
    for settings in (Settings(), Settings().with_(**zero)):
        chosen = resolved(settings.with_(replicas=3))
        assert {"grpc_port", "grpc_port.1", "grpc_port.2", "rest_port.2", "sync_port.2"} < set(chosen)
        assert len(set(chosen.values())) == len(chosen) == len(ports.PORTS) + 6
        assert all(0 < port < 65536 for port in chosen.values())


def test_two_settings_with_one_port_are_an_error() -> None:
    s, port = listener()
    s.close()
    with pytest.raises(SettingError, match=f"are both {port}"):
        resolved(Settings().with_(kafka_port=port, flink_port=port))


def test_a_moving_port_does_not_take_one_that_somebody_set() -> None:
    for _ in range(50):
        s, port = listener()
        with s:
            if port < 65000 and ports.is_free("127.0.0.1", port + 1) and ports.is_free("127.0.0.1", port + 2):
                chosen = resolved(as_default(kafka_port=port).with_(flink_port=port + 1))
                assert chosen["flink_port"] == port + 1
                assert chosen["kafka_port"] > port + 1
                return
    raise AssertionError("no three free ports in a row")
