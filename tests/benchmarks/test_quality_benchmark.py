"""The benchmark of quality: its figures follow from the seeds' values, and nobody learns what is not known yet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import PROJECT

sys.path.insert(0, str(PROJECT))

from benchmarks import quality  # noqa: E402  # not installed: imported by the line above
from benchmarks.common import pages, parts  # noqa: E402
from benchmarks.rankers import freshness  # noqa: E402


def test_a_part_takes_the_place_of_its_former_result() -> None:
    part = {"date": "today", "commit": "abc", "seconds": 3, "rows": [parts.row("gain", [0.5, 0.25], "> 0")]}
    before = quality.merged({}, {name: part | {"summary": {name: 1.0}} for name in quality.PARTS})
    after = quality.merged(before, {"freshness": part | {"summary": {"gain": 0.375}}})
    assert after["summary"]["gain"] == 0.375 and "freshness" not in after["summary"]
    assert set(after["parts"]) == set(quality.PARTS)
    assert "| gain | 0.375 | 0.1768 | 2 | > 0 |" in pages.quality(after)


def test_a_part_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.main(["--only", "mystery"])
    assert "part is 'mystery', allowed are " in capsys.readouterr().err


def test_each_example_is_scored_once_and_learned_after_its_window(tmp_path: Path) -> None:
    data = freshness.Data.read("simulator?history_minutes=1&minutes=4&rate=5")
    window_ms, live = data.declaration.window_ms, data.live
    start, scored, learned = int(live.ts_ms[0]), 0, 0
    for closed, shown in freshness.intervals(live, window_ms, 30_000):
        assert not closed.size or closed.ts_ms[-1] + window_ms < start
        assert shown.ts_ms[0] >= start and shown.ts_ms[-1] < start + 30_000
        np.testing.assert_array_equal(closed.ts_ms, live.ts_ms[learned : learned + closed.size])
        start, scored, learned = start + 30_000, scored + shown.size, learned + closed.size
    assert scored == live.size and 0 < learned < live.size
    base = freshness.Base(data, "deepfm", 0, tmp_path)
    held, before = base.state(0.0), freshness.judged(base.state(), live)
    scores = freshness.served(held, live, 60_000)
    early, late = live.ts_ms < live.ts_ms[0] + window_ms, live.ts_ms >= live.ts_ms[0] + 2 * window_ms
    np.testing.assert_array_equal(scores[early], before[early])
    assert (scores[late] != before[late]).all()
    weights = {name: weight.numpy() for name, weight in base.state().learner.weights.items()}
    for name, weight in held.learner.weights.items():
        np.testing.assert_array_equal(weight.numpy(), weights[name])
