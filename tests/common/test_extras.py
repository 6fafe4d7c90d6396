"""What runs without the extras, and the line that names the missing one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.extras import PRODUCTS, MissingExtra, require
from tests.support import PROJECT

NEED_AN_EXTRA = (
    {"features.online_store", "features.offline_store"}
    | {f"training.pipeline.{name}" for name in ("expectations", "validation", "delta_check", "feature_check")}
    | {f"serving.app.{name}" for name in ("client", "server", "web.api", "web.gate")}
)
"""Feast loads the first two. The DAGs start some: Great Expectations is installed with Airflow. The last are HTTP."""
IMPORT_ALL = """
import importlib, sys
from pathlib import Path

ABSENT = {"airflow", "duckdb", "fastapi", "feast", "great_expectations", "httpx", "ibis", "mlflow", "pandas", "uvicorn"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ModuleNotFoundError(f"{name} is not of the core", name=name)

sys.meta_path.insert(0, Absent())
for package in ("common", "delta_log", "features", "infra", "serving", "streaming", "training"):
    for path in Path(package).rglob("*.py"):
        name = ".".join(path.with_suffix("").parts)
        if path.name != "__init__.py" and name not in sys.argv[1:]:
            importlib.import_module(name)
            print(name)
"""


def test_every_module_but_those_named_imports_without_the_extras() -> None:
    command = [sys.executable, "-c", IMPORT_ALL, *NEED_AN_EXTRA]
    child = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=240)
    assert child.returncode == 0, child.stderr
    modules = set(child.stdout.split())
    assert {"training.learn.online", "serving.server.model_server", "infra.cli.main", "features.store"} <= modules
    assert len(modules) > 100


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ("airflow", "x is on, but Airflow is not installed: pip install -e '.[airflow]', or set x = off"),
        ("app", "x is on, but FastAPI is not installed: pip install -e '.[app]', or set x = off"),
        ("feast", "x is on, but Feast is not installed: pip install -e '.[feast]', or set x = off"),
        ("tracking", "x is on, but MLflow is not installed: pip install -e '.[tracking]', or set x = off"),
    ],
)
def test_a_missing_extra_is_named(extra: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRODUCTS, extra, (PRODUCTS[extra][0], "no_such_package"))
    with pytest.raises(MissingExtra) as e:
        require(extra, "x is on", "set x = off")
    assert str(e.value) == text


def test_an_installed_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRODUCTS, "feast", ("Feast", "numpy"))
    require("feast", "feast is true")


UP = (
    "airflow is true, but Airflow is not installed: pip install -e '.[airflow]', or set airflow = false; "
    "app is true, but FastAPI is not installed: pip install -e '.[app]', or set app = false; "
    "feast is true, but Feast is not installed: pip install -e '.[feast]', or set feast = false; "
    "mlflow is true, but MLflow is not installed: pip install -e '.[tracking]', or set mlflow = false"
)
PIPELINE = "the slow half runs in Airflow, but Airflow is not installed: pip install -e '.[airflow]'"


@pytest.mark.parametrize(("command", "text"), [("up", UP), ("pipeline", PIPELINE)])
def test_the_command_says_so_in_one_line(
    command: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from infra.cli.main import main

    for extra, (product, _) in list(PRODUCTS.items()):
        monkeypatch.setitem(PRODUCTS, extra, (product, "no_such_package"))
    assert main([command, "--name", "never"]) == 2
    assert capsys.readouterr().err == f"minutehand: {text}\n"
