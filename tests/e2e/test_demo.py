"""`minutehand demo` as a person runs it: its report is whole, Ctrl-C at any moment leaves nothing, it runs again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra.settings import PORTS
from tests.support.process import Process
from tests.support.wait import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = "simulator?minutes=20&history_minutes=20&rate=4&viewers=100&clips=50&new_clips=2"
KEYS = {
    "source", "seed", "commit", "sync_every_s", "wall_s", "setup_s", "events", "records", "pairs", "deltas",
    "rows_per_delta", "bytes_per_delta", "freshness_s", "predictions", "failed_predictions", "predict_ms", "auc",
    "calibration", "digests_equal",
}  # fmt: skip


def demo(var: Path, **more: object) -> Process:
    words = [f"{port}=0" for port in PORTS] + [f"var={var}", "sync_every=1s", "airflow=false"]
    words += ["feast=false", "features_from=source"]
    words += [f"{k}={v}" for k, v in more.items()]
    flags = [part for word in words for part in ("--set", word)]
    words = ["demo", "--source", SOURCE, "--wall", "20s", *flags]
    return Process(var / "demo.log", "infra.cli.main", *words, start_new_session=True)


def left_over(var: Path) -> list[str]:
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(var) in line]


def test_interrupted_anywhere_then_run_to_its_report(tmp_path: Path) -> None:
    moments: dict[str, Callable[[], bool]] = {
        "the batch pass": lambda: (tmp_path / "demo/log/ranker/LOCK").exists(),
        "the platform starts": lambda: (tmp_path / "demo/state.json").exists(),
        "the replay": lambda: (tmp_path / "demo/sent/progress.json").exists(),
    }
    for moment, reached in moments.items():
        process = demo(tmp_path, mlflow="false")
        until(reached, moment, 240, process)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        assert process.wait(60) != 0
        assert not left_over(tmp_path), f"left after Ctrl-C in {moment}"
        assert "Traceback" not in process.text(), process.tail()

    process = demo(tmp_path)
    assert process.wait(400) == 0, process.tail()
    assert not left_over(tmp_path)
    report = json.loads((tmp_path / "demo/report/report.json").read_text())
    assert set(report) >= KEYS
    pairs = report["pairs"]
    assert (pairs["lost"], pairs["double"], report["failed_predictions"], report["digests_equal"]) == (0, 0, 0, True)
    assert pairs["offered"] == pairs["learned_pos"] + pairs["learned_neg"] + pairs["sampled_out"]
    assert report["predictions"] > 0 and report["deltas"] > 0 and report["learned_equal"]
    assert (tmp_path / "demo/report/report.md").read_text() in process.text()
    for picture in ("freshness.png", "auc.png"):
        assert (tmp_path / "demo/report" / picture).stat().st_size > 10_000


def test_a_wrong_setting_is_named_with_what_is_allowed(tmp_path: Path) -> None:
    for flags, words in {
        ("--wall", "soon"): ("wall is 'soon'", "a duration"),
        ("--set", "sync_every=0"): ("sync_every is '0'", "a duration"),
        ("--set", "sinc_every=1s"): ("'sinc_every'", "did you mean sync_every?"),
    }.items():
        command = [
            sys.executable,
            "-m",
            "infra.cli.main",
            "demo",
            "--source",
            SOURCE,
            "--set",
            f"var={tmp_path}",
            *flags,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert done.returncode == 2
        assert all(word in done.stderr for word in words), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
