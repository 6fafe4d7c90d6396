"""Two models learn from the same examples, each with its log and trainer, and are served beside each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from delta_log.log import Log
from infra.platform import Platform
from infra.replay.live import read_lines
from infra.replay.run import caught_up, prepare
from infra.settings import PORTS, load
from serving.client import Scorer
from streaming.source import load as load_source
from tests.support.replay import flags

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = "simulator?seed=13&minutes=10&history_minutes=10&rate=4&viewers=100&clips=50&new_clips=2"
MODELS = {"ranker": "deepfm", "plain": "logistic"}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The platform after a replay, when each model serves all that was known at its end."""
    settings = load(None, [f"{port}=0" for port in PORTS]).with_(
        name="two", var=str(tmp_path_factory.mktemp("var")), source=SOURCE,
        model="deepfm?dim=8,plain=logistic?rate=0.1",
        event_time="replay", max_disorder="1s",
        sync_every="1s", digest=True, mlflow=False, airflow=False, feast=False, archive=False,
    )  # fmt: skip
    with Platform(settings) as running:
        prepare(running, 0, Console())
        running.start()
        sent = running.folder / "sent"
        words = [
            "--source",
            SOURCE,
            "--kafka",
            running.address("kafka"),
            "--serving",
            running.address("model-server-0"),
        ]
        words += ["--out", str(sent), "--wall-s", "20", "--sync-every-ms", "1000", *flags(running)]
        subprocess.run([sys.executable, "-m", "infra.replay.replay", *words], check=True, timeout=200)
        end_ms = json.loads((sent / "progress.json").read_text())["end_ms"]
        until_ms = end_ms - settings.max_disorder_ms - 1
        running.wait(lambda: caught_up(running, until_ms), 120, "learned and served by both models")
        yield running


def test_both_learn_every_pair_and_serve_the_rows_they_trained(platform: Platform) -> None:
    declaration = load_source(SOURCE).declaration
    learned, scores = {}, {}
    row = next(iter(load_source(SOURCE).live())).features
    for name, module in MODELS.items():
        log = Log(platform.layout.log(name))
        lineage = log.serving()
        assert lineage is not None
        newest = log.manifest(lineage, "delta", log.seqs(lineage, "delta")[-1])
        assert newest.model.name == module
        learned[name] = newest.learned
        scorer = Scorer([platform.address("model-server-0")], name, declaration)
        status = scorer.status()
        assert (status["lineage"], status["seq"]) == (lineage, newest.seq)
        served = {table: str(int(value.ravel()[0])) for table, value in scorer.call("digest", {}).items()}
        assert served == newest.digest, f"{name} serves other rows than its trainer has"
        scores[name] = scorer.score([row])[0]
        scorer.close()
        confirmed = [line for line in read_lines(platform.layout.confirmations(0, name)) if line["lineage"] == lineage]
        assert [line["seq"] for line in confirmed] == list(range(1, newest.seq + 1))
        assert all(line["digests_equal"] in (True, None) for line in confirmed)
    assert learned["ranker"] == learned["plain"], "one of them lost a pair or learned one twice"
    assert scores["ranker"] != scores["plain"]
    dims = {name: Log(platform.layout.log(name)) for name in MODELS}
    tables = {name: log.manifests(str(log.serving()))[-1].tables for name, log in dims.items()}
    assert {info.dim for info in tables["ranker"].values()} == {9}
    assert {info.dim for info in tables["plain"].values()} == {len(declaration.tasks)}


def test_each_has_its_process_and_its_name_in_the_metrics(platform: Platform) -> None:
    services = platform.state()["services"]
    assert {"base", "base-plain", "trainer", "trainer-plain", "sync-0", "model-server-0"} <= set(services)
    assert {services[name]["state"] for name in ("trainer", "trainer-plain", "sync-0")} == {"ready"}
    page = Path(platform.log("sync-0")).read_text()
    assert "Traceback" not in page
