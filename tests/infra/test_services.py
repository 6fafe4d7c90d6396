"""The commands of a platform's services."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from common.errors import InputError
from infra import prepare, services
from infra.settings import Settings
from infra.supervise.service import select
from serving.app.address import APP_KEY


def test_our_model_server_listens_on_the_platforms_host() -> None:
    settings = Settings(host="0.0.0.0", model_server="own")
    command = prepare.declared(settings, defaultdict(str))["model-server-0"].command
    assert command[command.index("--host") + 1] == "0.0.0.0"


@pytest.mark.parametrize("server", ["own", "/bin/true"])
def test_with_tls_the_servers_get_their_file_and_their_clients_theirs(tmp_path: Path, server: str) -> None:
    plain = prepare.declared(Settings(model_server=server), defaultdict(str))
    assert not any("MINUTEHAND_TLS" in name for service in plain.values() for name in service.env)
    assert "ssl_config_file" not in " ".join(plain["model-server-0"].command)
    files = {name: tmp_path / name for name in ("ssl_config_file", "tls", "tls_certificate", "tls_key")}
    for path in files.values():
        path.touch()
    settings = Settings(model_server=server).with_(**{name: str(path) for name, path in files.items()})
    declared = prepare.declared(settings, defaultdict(str))
    words = " ".join(declared["model-server-0"].command).replace("=", " ")
    assert f"--ssl_config_file {files['ssl_config_file']}" in words
    variables = {f"MINUTEHAND_{name.upper()}": str(files[name]) for name in ("tls", "tls_certificate", "tls_key")}
    for client in ("sync-0", "airflow-scheduler"):
        assert variables.items() <= declared[client].env.items(), client


def test_what_a_service_needs_starts_with_it() -> None:
    declared = list(prepare.declared(Settings(), defaultdict(str)).values())
    assert {"sync-0", "base"} < select(declared, ("model-server-0",))
    assert "trainer" not in select(declared, ("model-server-0",))
    assert select(declared, ()) == {service.name for service in declared}


def test_an_experiment_with_a_frozen_arm_has_a_copy_of_the_ranker_before_its_server(tmp_path: Path) -> None:
    settings = Settings(var=str(tmp_path), arms="served:50,frozen:50")
    declared = prepare.declared(settings, defaultdict(str))
    assert "--frozen" in declared["frozen-0"].command and declared["frozen-0"].after == ("base",)
    assert "frozen-0" in declared["model-server-0"].after
    assert declared["app"].command[-2:] == ["--arms", settings.arms]
    (settings.folder / "models/replica-0/frozen/1").mkdir(parents=True)
    assert declared["frozen-0"].unless() and 'name: "frozen"' in services.model_config(settings, 0)
    assert "frozen-0" not in prepare.declared(Settings(), defaultdict(str))


def test_a_stock_server_tries_a_version_once_so_that_a_broken_one_blocks_no_other() -> None:
    settings = Settings(model_server="/usr/bin/env")
    command = prepare.declared(settings, defaultdict(str))["model-server-0"].command
    assert command[0] == "/usr/bin/env" and "--max_num_load_retries=0" in command


def test_the_service_for_apps_has_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet = Settings(airflow=False, var=str(tmp_path))
    quiet.folder.mkdir()
    monkeypatch.delenv(APP_KEY, raising=False)
    assert APP_KEY not in services.secrets_of(quiet)
    with pytest.raises(InputError, match="host is '0.0.0.0' and MINUTEHAND_APP_KEY is not set; allowed is 127.0.0.1"):
        services.secrets_of(quiet.with_(host="0.0.0.0"))
    monkeypatch.setenv(APP_KEY, "sesame")
    declared = prepare.declared(quiet, services.secrets_of(quiet.with_(host="0.0.0.0")))
    assert [name for name, service in declared.items() if service.env.get(APP_KEY)] == ["app"]
    assert "sesame" not in " ".join(declared["app"].command)
    assert "app" not in prepare.declared(Settings(feast=False), defaultdict(str))
    assert "app" not in prepare.declared(Settings(app=False), defaultdict(str))


def test_the_trainer_gets_the_pace_of_dense_weights_that_somebody_set() -> None:
    def flags(**settings: str) -> list[str]:
        command = prepare.declared(Settings().with_(**settings), defaultdict(str))["trainer"].command
        return [word for at, word in enumerate(command) if "dense" in word or "dense" in command[at - 1]]

    assert flags() == []
    assert flags(dense_rate="0.1", dense_every="5") == ["--dense-rate", "0.1", "--dense-every", "5"]
