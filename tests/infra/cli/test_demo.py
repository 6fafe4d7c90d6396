"""A demo empties its platform's folder, so it begins only if nobody uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.disk import hold
from infra.cli.main import main
from infra.supervise.sentinel import lock


def demo(var: Path) -> int:
    return main(["demo", "--source", "simulator", "--set", f"var={var}"])


def test_a_second_demo_in_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(tmp_path / "demo.lock", "a demo"):
        assert demo(tmp_path) == 2
    assert "another demo runs here; end it, or give this one a --name" in capsys.readouterr().err


def test_a_platform_that_runs_is_not_emptied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo/log").mkdir(parents=True)
    with lock(tmp_path / "demo"):
        assert demo(tmp_path) == 2
    assert "is in use and would be emptied; end it with: minutehand down --name demo" in capsys.readouterr().err
    assert (tmp_path / "demo/log").is_dir()
