"""The commands of a platform's services."""

from __future__ import annotations

from collections import defaultdict

from infra import prepare, services
from infra.settings import Settings


def test_our_model_server_listens_on_the_platforms_host() -> None:
    settings = Settings(host="0.0.0.0", model_server="own")
    command = prepare.declared(settings, defaultdict(str))["model-server-0"].command
    assert command[command.index("--host") + 1] == "0.0.0.0"


def test_what_a_service_needs_starts_with_it() -> None:
    declared = list(prepare.declared(Settings(), defaultdict(str)).values())
    assert {"sync-0", "base"} < services.select(declared, ("model-server-0",))
    assert "trainer" not in services.select(declared, ("model-server-0",))
    assert services.select(declared, ()) == {service.name for service in declared}


def test_a_stock_server_tries_a_version_once_so_that_a_broken_one_blocks_no_other() -> None:
    settings = Settings(model_server="/usr/bin/env")
    command = prepare.declared(settings, defaultdict(str))["model-server-0"].command
    assert command[0] == "/usr/bin/env" and "--max_num_load_retries=0" in command
