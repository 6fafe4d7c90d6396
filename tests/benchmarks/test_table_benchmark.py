"""The benchmark of the table measures every figure of its summary; the pages show what the results say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PROJECT

sys.path.insert(0, str(PROJECT))

from benchmarks.common import pages  # noqa: E402
from benchmarks.cuckoo import summary  # noqa: E402


def test_a_small_run_measures_its_parts(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    command = [sys.executable, "benchmarks/table.py", "--quick", "--only", "speed", "memory", "--out", str(out)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=280, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    whole = json.loads(out.read_text())
    assert {"find_vs_ceiling", "find_vs_row_copy", "find_vs_gather", "apply_vs_stock"} <= whole["summary"].keys()
    assert {"memory_vs_payload_16", "memory_vs_payload_32", "index_bytes_per_key"} <= whole["summary"].keys()
    assert {c["contestant"] for c in whole["parts"]["speed-10M-16"]["cells"] if c["verb"] == "find"} == {
        "ours", "row_copy", "index_line", "gather", "DenseHashTable", "MutableHashTable",
    }  # fmt: skip
    for name in whole["summary"]:
        assert name in done.stdout
    assert "not measured" in done.stdout and "step_vs_addons" in done.stdout
    assert "| find_vs" not in pages.ratios(whole, {}) and f"{whole['summary']['find_vs_gather']:g}" in pages.ratios(
        whole, {}
    )


def test_the_pages_show_the_results() -> None:
    figures = pages.read()
    for kind, page in pages.PAGES.items():
        text = (PROJECT / page).read_text()
        assert pages.filled(text, kind, pages.block(kind, figures)) == text, page


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for benchmarks: cells"):
        pages.filled("# A page", "cells", "")


def test_every_figure_has_a_goal_and_words() -> None:
    assert pages.LABELS.keys() == summary.GOALS.keys()
    assert summary.reached("find_vs_ceiling", 0.75) and not summary.reached("find_vs_ceiling", 0.74)
    assert summary.reached("worst_growth_cpu_ms", 20) and not summary.reached("worst_growth_cpu_ms", 21)
