"""The app of docs/app.md on a live platform: it is scored, and what it reports is learned and served."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer

from infra import watch
from infra.http_client import metrics
from infra.layout import sync, trainer
from infra.platform import Platform
from infra.settings import PORTS, load
from infra.tail import Refused
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
    code, attributes = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
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
    app.write_text(attributes)
    assert run() == "refused 0\n"


def test_what_nobody_learns_from_is_counted_and_named(platform: Platform) -> None:
    kafka = platform.address("kafka")
    producer = KafkaProducer(bootstrap_servers=kafka)
    producer.send("actions", b"{broken").get(timeout=60)
    producer.close()
    with Refused(kafka) as refused:
        platform.wait(lambda: refused.count() == {"actions.dead": 1}, 60, "the dead letter")
    figures = {figure.name: figure for figure in watch.look(platform.facts(), watch.Limits())}
    assert figures["health of kafka"].ok and figures["health of join"].ok and figures["health of clock"].ok
    assert not figures["dead letters (actions.dead 1)"].ok and figures["share of events that came too late"].ok
    assert figures["freshness p99 of replica-0/ranker, seconds"].seen is not None
