"""The README's commands work as written; only the ports are other ones, since 8500 may be somebody's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.platform import Platform
from infra.settings import PORTS, load
from tests.support import PROJECT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SECTION = (PROJECT / "README.md").read_text().split("## Ask the served model")[1].split("## ")[0]
SHELL, PYTHON = (re.findall(rf"```{kind}\n(.*?)```", SECTION, re.S) for kind in ("sh", "python"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    var = str(tmp_path_factory.mktemp("var"))
    mine = {f"MINUTEHAND_{port.upper()}": "0" for port in PORTS} | {
        "MINUTEHAND_VAR": var,
        "MINUTEHAND_SYNC_EVERY": "1s",
        "MINUTEHAND_AIRFLOW": "false",
        "MINUTEHAND_FEAST": "false",
        "MINUTEHAND_MLFLOW": "false",
    }
    yield {**os.environ, **mine}
    Platform(load(None, ["name=local", f"var={var}"])).stop()


def run(command: str, environment: dict[str, str], addresses: dict[str, str]) -> str:
    for written, service in {"8500": "model-server-0", "8501": "model-server-0-rest", "9092": "kafka"}.items():
        if service in addresses:
            command = re.sub(rf"(http://)?127\.0\.0\.1:{written}", addresses[service], command)
    command = re.sub(r"\bvar/(?=sent|local)", f"{environment['MINUTEHAND_VAR']}/", command)
    done = subprocess.run(
        command, shell=True, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_commands_answer(environment: dict[str, str]) -> None:
    first, last = ([line.split("  #")[0].strip() for line in block.splitlines()] for block in SHELL)
    folder = Path(environment["MINUTEHAND_VAR"]) / "local"
    said = {}
    for line in first:
        known = json.loads((folder / "platform.json").read_text())["addresses"] if folder.exists() else {}
        said[line.split("'")[0]] = run(line, environment, known)
    answers = list(said.values())
    assert "trainer" in answers[1] and "ready" in answers[1]
    assert json.loads(answers[2])["model_version_status"][0]["state"] == "AVAILABLE"
    (scored,) = json.loads(answers[3])["predictions"]
    assert 0 < scored["watch"] < 1 and 0 < scored["save"] < 1 and scored["seq"] >= 0
    assert "delta" in answers[5]

    addresses = json.loads((folder / "platform.json").read_text())["addresses"]
    script = folder / "readme.py"
    script.write_text(re.sub(r"127\.0\.0\.1:8500", addresses["model-server-0"], PYTHON[0]))
    printed = run(f"{sys.executable} {script}", environment, {})
    assert "by delta" in printed and "learned_until_ms" in printed
    for line in last:
        run(line, environment, {})
    assert not Platform(load(None, ["name=local", f"var={folder.parent}"])).is_running()
