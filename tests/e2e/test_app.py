"""The app of docs/your-app.md on a live platform: it gets lists, and what it reports is learned and served."""

from __future__ import annotations

import json
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

PAGE = (PROJECT / "docs/your-app.md").read_text()
DECLARATION, CLIENT, DIRECT = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
CURL = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the person of the page works."""
    folder = tmp_path_factory.mktemp("shop")
    for name, code in (("shop.py", DECLARATION), ("client.py", CLIENT), ("direct.py", DIRECT)):
        (folder / name).write_text(code)
    return folder


@pytest.fixture(scope="module")
def platform(folder: Path) -> Iterator[Platform]:
    settings = load(None, [f"{port}=0" for port in PORTS]).with_(
        name="live", var=str(folder / "var"), source=str(folder / "shop.py"), sync_every="1s",
        mlflow=False, airflow=False, archive=False,
    )  # fmt: skip
    with Platform(settings) as running:
        running.start()
        yield running


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"}, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pages_commands_and_its_client(platform: Platform, folder: Path) -> None:
    app, *rest = CURL.splitlines()
    assert app.startswith("APP=")
    script = "\n".join([f"APP={platform.address('app')}", *rest])
    answers = [json.loads(line) for line in run(folder, "bash", "-ec", script).replace("}{", "}\n{").splitlines()]
    taken = {"accepted": 1, "refused": []}
    assert answers[:2] == [{"accepted": 2, "refused": []}, taken] and answers[3] == taken
    assert {item["item_id"] for item in answers[2]["items"]} == {"red shoes", "blue hat"}
    assert {item["source"] for item in answers[2]["items"]} == {"newest"} and answers[2]["model"]["seq"] == 0

    learned, served = platform.address(trainer(RANKER)), platform.address(sync(0))
    name = "minutehand_trainer_examples_total"
    platform.wait(lambda: metrics(learned).get(name, 0) >= 1, 120, "the click is learned")
    platform.wait(lambda: metrics(served, model=RANKER).get("minutehand_sync_seq", 0) >= 1, 120, "and served")
    printed = run(folder, sys.executable, "client.py", platform.address("app"))
    seq, items = re.match(r"by delta (\d+) (\[.*\])", printed).groups()  # type: ignore[union-attr]
    assert int(seq) >= 1 and items.startswith("[('red shoes'"), printed


def test_an_app_without_the_service(platform: Platform, folder: Path) -> None:
    assert len(DIRECT.splitlines()) <= 40
    addresses = (platform.address("kafka"), platform.address("model-server-0"))
    assert run(folder, sys.executable, "direct.py", *addresses).endswith("refused 0\n")


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
