"""The slow half on a running platform, by Airflow's REST API: a sample begins a warm start, whose model is served."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.interval import Interval, text
from delta_log.log import Log
from infra.airflow.rest import Airflow, AirflowError
from infra.cli import pipeline
from infra.platform import Platform
from infra.settings import PORTS, load
from infra.supervise.processes import listening
from streaming.archive.archive import Archive
from tests.support import ODD_NAME
from tests.support.replay import flags
from training.pipeline.sampling import Sampling
from training.record.registry import CANDIDATE, CHAMPION, TRAINED, client_of, registered_model_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# Hours of event time: positives come a window before their negatives, which an interval of minutes would see.
SOURCE = "simulator?seed=5&minutes=200&history_minutes=10&rate=1.5&drift=0&viewers=100&clips=50&new_clips=2"

GATE = {"tolerance": 0.2, "calibration": 2}


@pytest.fixture(scope="module")
def platform(odd_interpreter: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """All of it, Airflow too, on an untrained base, after a replay.

    The gate is wide: after the two dozen steps of so short a day each step still moves the mean score by a tenth, and
    how much the served model learned during the replay is the machine's pace. What it refuses, other tests show.
    """
    settings = (
        load(None, [f"{port}=0" for port in PORTS])
        .with_(name="slow", var=str(tmp_path_factory.mktemp("var") / ODD_NAME), source=SOURCE, sync_every="60s")
        .with_(event_time="replay", max_disorder="1s")
    )
    with Platform(settings) as running:
        running.start(timeout_s=600)
        words = ["--source", SOURCE, "--kafka", running.address("kafka"), "--sync-every-ms", "60000", "--wall-s", "20"]
        words += ["--serving", running.address("model-server-0"), "--out", str(running.folder / "sent")]
        words += ["--features", "feast", "--feature-folder", str(running.layout.features), *flags(running)]
        subprocess.run([sys.executable, "-m", "infra.replay.replay", *words], check=True, timeout=300)
        yield running


def test_a_sample_becomes_the_served_model(platform: Platform, capfd: pytest.CaptureFixture[str]) -> None:
    """The pilot is a model of MLflow's, by its alias; what was shown was scored with features read from Feast."""
    first = Log(platform.layout.log()).serving()
    before, after = pipeline.once(platform, {"pilot": TRAINED, **GATE})
    said = capfd.readouterr().out
    assert before.lineage == first != after.lineage == Log(platform.layout.log()).serving()
    assert before.scores != after.scores
    told = [line.split()[0].strip(",") for line in said.splitlines()]
    steps = ["sample_examples", "validate", "features", "sample", "batch_warm_start", "train", "evaluate", "promote"]
    places = [told.index(step) for step in steps]
    assert places == sorted(places) and said.rstrip().endswith("other scores")
    (compared,) = re.findall(r"features +success .* impressions (\d+), compared (\d+)", said)
    assert compared[0] == compared[1] != "0"
    assert f"pilot {first}.0" in said
    (run,) = re.findall(r"batch_warm_start, run (\S+)", said)
    promoted = pipeline.session(platform).result("batch_warm_start", run, "promote")
    assert promoted["gate"].items() >= GATE.items()
    logged = {path.name for path in (platform.layout.airflow / "logs").iterdir()}
    assert logged >= {f"dag_id={dag}" for dag in pipeline.DAGS}
    # MLflow's own word: the alias has moved to the version of what serves now, and the figures are its tags.
    client, name = client_of(platform.address("mlflow")), registered_model_of(SOURCE, "deepfm")
    champion = client.get_model_version_by_alias(name, CHAMPION)
    assert champion.tags["lineage"] == after.lineage and float(champion.tags["eval_low"]) > -0.2
    assert client.get_model_version_by_alias(name, CANDIDATE).version == champion.version


# Another model has just begun to serve: its scores are meant to be others.
@pytest.mark.parametrize("dag, form", [("materialize_features", {}), ("publish_base", {}),
                                       ("watch_platform", {"drift": 20})])  # fmt: skip
def test_every_other_dag_is_green(platform: Platform, dag: str, form: dict[str, object]) -> None:
    ask: Airflow = pipeline.session(platform)
    tasks = ask.wait(dag, ask.trigger(dag, form))
    assert tasks and {task.state for task in tasks.values()} == {"success"}


def test_a_step_that_failed_says_why_and_resumes_when_it_is_cleared(platform: Platform) -> None:
    ask = pipeline.session(platform)
    begin_ms = Archive(platform.layout.archive).since_ms("examples") // 1000 * 1000
    interval = Interval(begin_ms, begin_ms + 3_600_000)
    way = platform.layout.samples / interval.name / Sampling().folder
    way.parent.mkdir(parents=True, exist_ok=True)
    way.write_text("in the way")
    with pytest.raises(AirflowError, match=r"sample_examples failed: sample: .*File exists") as said:
        pipeline.once(platform, {"begin": text(interval.begin_ms), "end": text(interval.end_ms)})
    assert str(way) in str(said.value)
    (run,) = [r for r in ask.runs("sample_examples") if ask.state("sample_examples", r) == "failed"]
    before = ask.tasks("sample_examples", run)
    way.unlink()
    ask.clear("sample_examples", run, ["sample"])
    after = ask.wait("sample_examples", run)
    assert [after[task].tries for task in ("interval", "validate", "features", "sample")] == [1, 1, 1, 3]
    for done in ("interval", "validate", "features"):
        assert after[done].seconds == before[done].seconds
    assert Path(after["sample"].result["file"]).parent == way


def test_every_listener_of_every_service_is_on_loopback(platform: Platform) -> None:
    """As the kernel lists them, of all processes that the services started."""
    addresses = listening([(pid, start) for pid, start in platform.state()["processes"]])
    hosts = {host.removeprefix("::ffff:") for host, _ in addresses}
    used = {name: port for name, port in platform.facts()["ports"].items() if name != "clock_port"}  # it is a replay
    assert {port for _, port in addresses} >= set(used.values())
    assert hosts <= {"127.0.0.1", "::1"}, addresses


def test_nothing_is_left_running(platform: Platform) -> None:
    platform.stop()
    var = str(platform.folder)
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if var in " ".join(p.info["cmdline"] or ())]
    assert not left
