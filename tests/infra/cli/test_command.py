"""What subcommands share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.cli.command import settings_flags, settings_of


def test_a_command_calls_model_servers_by_the_platforms_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINUTEHAND_TLS", "")
    authority, file = tmp_path / "ca.pem", tmp_path / "settings.toml"
    authority.touch()
    file.write_text(f'tls = "{authority}"')
    settings_of(settings_flags().parse_args(["--settings", str(file)]))
    assert os.environ["MINUTEHAND_TLS"] == ""  # the environment wins over the file
    monkeypatch.delenv("MINUTEHAND_TLS")
    settings_of(settings_flags().parse_args(["--settings", str(file)]))
    assert os.environ["MINUTEHAND_TLS"] == str(authority)
