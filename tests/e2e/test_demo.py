"""`minutehand demo` as a person runs it: its report is whole, Ctrl-C at any moment leaves nothing, it runs again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra.settings import PORTS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = "simulator?minutes=20&history_minutes=20&rate=4&viewers=100&clips=50&new_clips=2"
KEYS = {
    "source", "seed", "commit", "sync_every_s", "wall_s", "setup_s", "events", "records", "pairs", "deltas",
    "rows_per_delta", "bytes_per_delta", "freshness_s", "predictions", "failed_predictions", "predict_ms", "auc",
    "calibration", "digests_equal",
}  # fmt: skip


def demo(var: Path, **more: object) -> subprocess.Popen[str]:
    words = [f"{port}=0" for port in PORTS] + [f"var={var}", "sync_every=1s", "airflow=false", "feast=false"]
    words += [f"{k}={v}" for k, v in more.items()]
    flags = [part for word in words for part in ("--set", word)]
    command = [sys.executable, "-m", "infra.cli.main", "demo", "--source", SOURCE, "--wall", "20s", *flags]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def left_over(var: Path) -> list[str]:
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(var) in line]


def until(reached: Callable[[], bool], what: str, timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


def test_interrupted_anywhere_then_run_to_its_report(tmp_path: Path) -> None:
    moments: dict[str, Callable[[], bool]] = {
        "the batch pass": lambda: (tmp_path / "demo/log/LOCK").exists(),
        "the platform starts": lambda: (tmp_path / "demo/state.json").exists(),
        "the replay": lambda: (tmp_path / "demo/sent/progress.json").exists(),
    }
    for moment, reached in moments.items():
        process = demo(tmp_path)
        until(lambda at=reached, p=process: at() or p.poll() is not None, moment)
        assert process.poll() is None, f"{moment}: it ended by itself:\n{process.communicate()[0]}"
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        assert process.wait(60) != 0
        assert not left_over(tmp_path), f"left after Ctrl-C in {moment}"

    process = demo(tmp_path)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    assert not left_over(tmp_path)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert set(report) >= KEYS
    pairs = report["pairs"]
    assert (pairs["lost"], pairs["double"], report["failed_predictions"], report["digests_equal"]) == (0, 0, 0, True)
    assert pairs["offered"] == pairs["learned_pos"] + pairs["learned_neg"] + pairs["sampled_out"]
    assert report["predictions"] > 0 and report["deltas"] > 0 and report["learned_equal"]
    assert (tmp_path / "report/report.md").read_text() in said
    for picture in ("freshness.png", "auc.png"):
        assert (tmp_path / "report" / picture).stat().st_size > 10_000


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
