"""`minutehand ab`: a table, a line a difference, warnings; and what is missing is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common import process
from infra.cli.main import main
from infra.layout import Layout
from infra.settings import load
from tests.serving.experiment.test_results import BEGIN, MINUTES, with_arms
from tests.support.archived import SOURCE, archive

ARMS = ["--set", "arms=served:50,frozen:50"]


def test_the_arms_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["ab", "--set", f"var={tmp_path}", "--set", f"source={SOURCE}"]
    archive(Layout(load(None, there[2::2])).archive, MINUTES, with_arms)
    assert main([*there, *ARMS, "--begin", str(BEGIN), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert main([*there, *ARMS, "--begin", str(BEGIN)]) == 0
    out = capsys.readouterr().out
    for arm in figures["arms"]:
        assert f"{arm['users']:,}" in out and f"{arm['rates']['watch']:.4f}" in out
    assert f"watch: frozen less served is {figures['differences']['frozen']['watch']['difference']:+.4f}" in out
    assert main([*there, *ARMS, "--record"]) == process.WRONG_INPUT
    assert "--record needs MLflow" in capsys.readouterr().err
    assert main(there) == process.WRONG_INPUT
    assert "the others are none: set arms, such as served:50,frozen:50" in capsys.readouterr().err
    assert main([*there, "--set", "arms=served:50,other:50"]) == process.WRONG_INPUT
    assert "'other' is no arm; allowed are served, frozen" in capsys.readouterr().err
