"""The commands of a platform's services."""

from __future__ import annotations

from collections import defaultdict

from infra import prepare
from infra.settings import Settings


def test_our_model_server_listens_on_the_platforms_host() -> None:
    settings = Settings(host="0.0.0.0", model_server="own")
    command = prepare.declared(settings, defaultdict(str))["model-server-0"].command
    assert command[command.index("--host") + 1] == "0.0.0.0"
