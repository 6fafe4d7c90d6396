"""The batch pass as a person runs it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from common.auc import auc
from delta_log.log import Log
from delta_log.verification import verify
from streaming.declaration import Declaration, Feature
from tests.support.batches import batch_of
from training.learn import batch_pass as batch
from training.learn import metrics
from training.learn.metrics import logloss

SOURCE = "simulator?seed=5&minutes=5"


def test_one_pass_makes_a_base_that_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "batch")
    assert batch.main(["--source", SOURCE, "--log", str(tmp_path)]) == 0
    log = Log(tmp_path)
    (lineage,) = log.lineages()
    base, deltas = log.chain(lineage)
    assert (log.serving(), base.seq, deltas) == (lineage, 0, []) and verify(log, lineage) == []
    assert base.positions == {} and base.learned_until_ms == -1 and base.source == SOURCE
    assert all(info.rows > 0 for info in base.tables.values()) and set(base.digest) == {*base.tables, "dense"}
    report = next(m for m in caplog.messages if "last tenth, test then train: auc" in m)
    assert float(report.split("auc ")[1].split(",")[0]) > 0.7  # the truth itself reaches about 0.8


def test_an_untrained_base_and_the_next_generation(tmp_path: Path) -> None:
    for generation in ("000001", "000002"):
        assert batch.main(["--source", SOURCE, "--log", str(tmp_path), "--untrained"]) == 0
        serving = Log(tmp_path).serving()
        assert serving is not None and serving.startswith(generation)
    base, _ = Log(tmp_path).chain(serving)
    assert base.learned == {"count": 0, "sum": "0"} and all(info.total == 0 for info in base.tables.values())


def test_wrong_settings_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch.main(["--source", "nonsense", "--log", str(tmp_path)]) == 2
    assert "source is 'nonsense'" in caplog.text
    with pytest.raises(SystemExit):
        batch.main(["--source", SOURCE, "--log", str(tmp_path), "--epochs", "0"])
    assert "--epochs: is 0, allowed is 1 or more" in capsys.readouterr().err
    assert Log(tmp_path).lineages() == []


def test_a_wrong_exposure_is_named_and_no_base_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "shop.py").write_text(
        "from streaming.declaration import Declaration, Feature\nfrom streaming.source import Exposure\n"
        "features = Feature('user', 'id'), Feature('price', 'number')\n"
        "declaration = Declaration('shop', features, ('buy',), 'buy', 1000)\n"
        "def history(): yield Exposure('a', 1, 1, 1_700_000_000_000, {'user': 7, 'price': float('nan')}, {})\n"
        "live = history\n"
    )
    assert batch.main(["--source", str(tmp_path / "shop.py"), "--log", str(tmp_path / "log")]) == 2
    assert caplog.messages[-1].startswith("history: impression 'a': price is nan, allowed is a number")
    assert not (tmp_path / "log").exists() or Log(tmp_path / "log").lineages() == []


def test_auc_and_logloss_against_all_pairs() -> None:
    rng = np.random.default_rng(3)
    scores, labels = rng.integers(0, 8, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    weights = np.where(labels > 0, 1.0, rng.integers(1, 5, 60))
    won = total = 0.0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(labels == 0):
            total += weights[i] * weights[j]
            won += weights[i] * weights[j] * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0)
    assert auc(labels, scores, weights) == pytest.approx(won / total)
    assert np.isnan(auc(np.zeros(60), scores))
    repeated = [np.repeat(x, weights.astype(int)) for x in (scores, labels)]  # a weight of k is k examples
    assert auc(repeated[1], repeated[0]) == pytest.approx(won / total)
    p = 1 / (1 + np.exp(-repeated[0]))
    expected = -np.mean(np.log(np.where(repeated[1] > 0, p, 1 - p)))
    assert logloss(scores, labels, weights) == pytest.approx(expected)


def test_the_trainer_measures_a_value_task_by_its_expected_value() -> None:
    declared = Declaration("films", (Feature("film", "id"),), ("click", "watch"), "click", 60_000, values=("watch",))
    tested = metrics.Tested(declared)
    labels, values = np.array([[1, 1], [0, 0], [1, 0]]), np.array([[np.nan, 6], [np.nan, np.nan], [np.nan, np.nan]])
    logits = np.log([[3, 4], [1, 2], [1, 1]]).astype(np.float32)
    tested.add(batch_of({"film": np.arange(3)}, labels, pi=[1, 0.5, 1], values=values), logits)
    found = tested.figures()
    # Mean expected 4 + 2 x 2 + 1, mean value 6: of the impressions 1, 2, 1.
    assert (found["watch_mean"], found["watch_calibration"]) == (pytest.approx(6 / 4), pytest.approx(9 / 6))
    assert found["watch_concordance"] == 1 and found["auc"] == pytest.approx(1.5 / 2)
    loss = (np.log(5) + 6 * np.log(5 / 4) + 2 * np.log(3) + np.log(2)) / 4
    assert found["watch_loss"] == pytest.approx(loss, rel=1e-5)
