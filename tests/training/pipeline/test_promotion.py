"""The gate names each figure that it refuses, and what is allowed. By default it promotes on a day of KuaiRand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from delta_log.log import Log
from streaming.source import load
from streaming.sources import download, kuairand_files
from streaming.topics import EXAMPLES
from tests.support import archived
from training.learn import batch_pass
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.models.model import make
from training.pipeline import warm_start
from training.pipeline.evaluation import scores_while_learning
from training.pipeline.promotion import Gate


def test_the_gate_names_the_figure_and_what_is_allowed() -> None:
    good = {"examples": 500, "low": -0.005, "candidate": {"calibration": 1.1}, "tasks": {}}
    assert Gate().refusals(good) == []
    assert Gate(tolerance=0.001).refusals(good) == [
        "low, the lower bound of candidate - served AUC, is -0.0050, allowed is above -0.001"
    ]
    assert Gate().refusals({**good, "candidate": {"calibration": 1.5}}) == [
        "calibration, the candidate's mean score / rate, is 1.500, allowed is 0.8 to 1.25"
    ]
    assert Gate(least_examples=501).refusals(good) == ["examples is 500, allowed is 501 or more"]
    nothing = {"examples": 0, "low": None, "candidate": {"calibration": None}, "tasks": {}}
    assert len(Gate().refusals(nothing)) == 3


def test_the_gate_refuses_an_expected_value_that_is_not_the_mean() -> None:
    good = {"examples": 500, "low": -0.005, "candidate": {"calibration": 1.1}}
    clicks = {"positives": 300, "candidate": 0.7, "served": 0.7}
    for ratio, positives, refused in ((1.2, 300, 0), (1.5, 300, 1), (0.5, 300, 1), (1.5, 20, 0), (None, 300, 0)):
        watch = {**clicks, "positives": positives, "candidate_calibration": ratio}
        refusals = Gate().refusals({**good, "tasks": {"click": clicks, "watch": watch}})
        assert len(refusals) == refused
        assert all(
            text.startswith(f"calibration of watch, the candidate's mean expected value / mean value, is {ratio:.3f},")
            for text in refusals
        )


DAYS, HOUR_MS = "kuairand?days=1&live_days=1", 3_600_000


@pytest.mark.skipif(
    not (os.environ.get("MINUTEHAND_DATA") or (download.cache() / kuairand_files.ARCHIVE.name).is_dir()),
    reason="KuaiRand's files are neither in MINUTEHAND_DATA nor in the cache",
)
def test_the_default_gate_promotes_the_candidate_of_a_day_of_kuairand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base of a day serves the next day and learns it. The candidate begins with that base and learns the morning."""
    source, log = load(DAYS), Log(tmp_path / "log")
    assert batch_pass.main(["--source", DAYS, "--log", str(log.path)]) == 0
    base = log.manifest(log.serving() or "", "base", 0)
    served = State(
        Learner(make(base.model, source.declaration), Settings(dense_rate=source.declaration.online.dense_rate)), DAYS
    )
    served.restore(log, base.lineage, 0)
    shown = list(source.live())
    day = archived.joined(source.declaration, shown)
    day.scores = 1 / (1 + np.exp(-scores_while_learning(served, day, np.arange(day.size))))
    begin_ms = shown[0].ts_ms // HOUR_MS * HOUR_MS
    noon_ms, end_ms = begin_ms + 12 * HOUR_MS, begin_ms + 24 * HOUR_MS
    parts = [{EXAMPLES: archived.examples(day, source.declaration)}]
    archive = archived.write(tmp_path / "archive", source, parts, end_ms + HOUR_MS)

    common = ["--source", DAYS, "--log", str(log.path), "--archive", str(archive)]
    capsys.readouterr()
    morning = ["--begin", str(begin_ms), "--end", str(noon_ms), "--from", "serving"]
    assert warm_start.main(["train", *common, *morning]) == 0
    record = json.loads(capsys.readouterr().out)
    afternoon = ["--begin", str(noon_ms), "--end", str(end_ms), "--lineage", record["lineage"]]
    assert warm_start.main(["evaluate", *common, *afternoon]) == 0
    report = json.loads(capsys.readouterr().out)
    assert record["from"] == f"{base.lineage}/{base.name}" and min(record["rows"], report["examples"]) > 2000

    assert report["served"]["auc"] > 0.6 and Gate().refusals(report) == []
