"""The app of docs/app.md on a live platform: it is scored, and what it reports is learned and served."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.http_client import metrics
from infra.layout import sync, trainer
from infra.platform import Platform
from infra.settings import PORTS, load
from serving.signatures import RANKER
from tests.support import PROJECT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PAGE = (PROJECT / "docs/app.md").read_text()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    settings = load(None, [f"{port}=0" for port in PORTS]).with_(
        name="live", var=str(tmp_path_factory.mktemp("var")), source="simulator", sync_every="1s",
        mlflow=False, airflow=False, feast=False, archive=False,
    )  # fmt: skip
    with Platform(settings) as running:
        running.start()
        yield running


def test_a_click_of_the_pages_app_is_learned_and_served(platform: Platform, tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(code.splitlines()) <= 40
    app = tmp_path / "app.py"
    app.write_text(code)
    addresses = (platform.address("kafka"), platform.address("model-server-0"))

    def run() -> str:
        done = subprocess.run(
            [sys.executable, str(app), *addresses], cwd=PROJECT, env={"PYTHONPATH": str(PROJECT)}, timeout=120,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("refused 0\n")
        return done.stdout

    assert run().startswith("scored by delta 0 ")
    learned, served = platform.address(trainer(RANKER)), platform.address(sync(0))
    name = "minutehand_trainer_examples_total"
    platform.wait(lambda: metrics(learned).get(name, 0) >= 1, 120, "the click is learned")
    platform.wait(lambda: metrics(served, model=RANKER).get("minutehand_sync_seq", 0) >= 1, 120, "and served")
    assert not run().startswith("scored by delta 0 ")
