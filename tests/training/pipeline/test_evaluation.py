"""The report on a candidate beside the served scores: numbers worked out by hand, and news that turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from common.auc import auc, compared
from streaming.declaration import Declaration, Feature
from streaming.example import Batch, concat
from training.learn.learner import Learner, Settings
from training.learn.state import State, scores_of
from training.models.model import load
from training.pipeline.evaluation import compare, scores_while_learning
from training.pipeline.promotion import Gate

D = Declaration(name="two", features=(Feature("user", "id"),), tasks=("click", "like"), judged="like", window_ms=10)


def batch(labels: list[float], scores: list[float], pi: list[float], weights: list[float] | None = None) -> Batch:
    """Examples that are about `like` alone, without scores of `click`."""
    n = len(labels)
    zeros, ids = np.zeros(n, np.int64), pa.array([f"i{k}" for k in range(n)])
    other = np.zeros(n, np.float32)
    return Batch(
        impression_id=ids, request_id=ids, lineage=ids, kind=np.array(["negative"] * n), user_id=np.arange(n) // 2,
        item_id=zeros, ts_ms=zeros, position=zeros, event_ms=zeros, written_ms=zeros, seq=zeros,
        pi=np.array(pi, np.float64),
        labels=np.stack([other, np.array(labels, np.float32)], 1),
        weights=np.stack([other, np.ones(n, np.float32) if weights is None else np.array(weights, np.float32)], 1),
        scores=np.stack([other * np.nan, np.array(scores, np.float32)], 1), 
        values=np.full((n, 2), np.nan), line=zeros, features={"user": zeros},
    )  # fmt: skip


def test_figures_by_hand() -> None:
    # Four examples; the last negative stands for two (pi 0.5); one was not scored, one is not of this task.
    shown = batch([1, 0, 1, 0, 1, 0], [0.5, 0.25, 0.75, 0.5, np.nan, 0.9], [1, 1, 1, 0.5, 1, 1], [1, 1, 1, 1, 1, 0])
    logits = np.zeros((6, 2), np.float32)
    logits[:, 1] = np.log([3, 1, 1 / 3, 1 / 3, 1, 1])  # probabilities 3/4, 1/2, 1/4, 1/4
    report = compare(shown, logits, D)
    assert (report["task"], report["examples"], report["unscored"]) == ("like", 4, 1)
    # Pairs, weighted: 2 positives x (1 + 2) negatives. Served: 0.75 above all 3; 0.5 above 1, a tie with 2.
    assert report["served"]["auc"] == pytest.approx((3 + 1 + 2 / 2) / 6)
    # Candidate: 3/4 above all 3; 1/4 below 1, a tie with 2.
    assert report["candidate"]["auc"] == pytest.approx((3 + 0 + 2 / 2) / 6)
    assert report["difference"] == pytest.approx(-1 / 6) and report["low"] <= report["difference"]
    assert report["served"]["calibration"] == pytest.approx((0.5 + 0.25 + 0.75 + 2 * 0.5) / 2)
    assert report["candidate"]["calibration"] == pytest.approx((0.75 + 0.5 + 0.25 + 2 * 0.25) / 2)
    loss = -(np.log(0.75) + np.log(0.5) + np.log(0.25) + 2 * np.log(0.75)) / 5
    assert report["candidate"]["loss"] == pytest.approx(loss)
    assert report["tasks"]["click"] == {"positives": 0, "candidate": None, "served": None}


def test_the_figures_of_a_value_task_are_of_its_expected_value() -> None:
    """Two of five impressions were watched, for 4 and 1 minutes; the last negative stands for two."""
    declared = replace(D, tasks=("watch", "like"), values=("watch",))
    shown = batch([1, 0, 0, 0, 1], [0.5] * 5, [1, 1, 1, 0.5, 1])
    shown.labels[:, 0], shown.weights[:, 0], shown.values[:, 0] = [1, 0, 0, 0, 1], 1, [4, np.nan, np.nan, np.nan, 1]
    expected = np.array([2.0, 0.5, 0.25, 1.0, 0.5])
    shown.scores[:, 0] = expected / (1 + expected)
    logits = np.zeros((5, 2), np.float32)  # the candidate expects 1 of each
    watch = compare(shown, logits, declared)["tasks"]["watch"]
    assert (watch["positives"], watch["mean"]) == (2, pytest.approx(5 / 6))
    assert watch["candidate_calibration"] == pytest.approx(6 / 5)
    assert watch["served_calibration"] == pytest.approx((2 + 0.5 + 0.25 + 2 * 1 + 0.5) / 5)
    # 4 is above all 5; 1 has a tie, is above one, and below the two.
    assert watch["candidate"] == 0.5 and watch["served"] == pytest.approx((5 + 1.5) / 9)
    weights, values = np.array([1, 1, 1, 2, 1]), np.array([4, 0, 0, 0, 1])
    loss = (weights * (np.log1p(expected) + values * np.log1p(1 / expected))).sum() / 6
    assert watch["served_loss"] == pytest.approx(loss)
    assert watch["candidate_loss"] == pytest.approx((6 + 5) * np.log(2) / 6)
    assert compare(shown, logits, D)["tasks"]["click"].keys() == {"positives", "candidate", "served"}


def news(rng: np.random.Generator, n: int = 12_000) -> Batch:
    """One example a second about 400 clips. In the last third the taste for them goes two fifths of a turn.

    A label is known a minute after its impression.
    """
    shown = batch([0] * n, [np.nan] * n, [1] * n)
    at, clip = np.arange(n), rng.integers(0, 400, n)
    turn = 0.4 * 2 * np.pi * np.maximum(0, at - 2 * n / 3) / (n / 3)
    logits = -0.5 + 2 * np.cos(turn + 2 * np.pi * clip / 400)
    shown.labels[:, 1] = rng.random(n) < 1 / (1 + np.exp(-logits))
    shown.user_id, shown.ts_ms, shown.event_ms = at // 10, 1000 * at, 1000 * at + 60_000
    shown.features = {"user": clip}
    return shown


def learned(examples: Batch) -> State:
    state = State(Learner(load("deepfm?dim=4", D), Settings(batch=64)), "news")
    state.learn(examples)
    return state


def test_the_default_gate_promotes_a_good_candidate_on_news_and_no_bad_one() -> None:
    rng = np.random.default_rng(5)
    whole = news(rng)
    past, day = whole.slice(0, 4000), whole.slice(4000, 8000)
    judged = whole.slice(8000, whole.size)
    everything = np.arange(judged.size)
    # The served model began a day before the candidate, and kept learning while it served.
    served = scores_while_learning(learned(concat([past, day])), judged, everything)
    judged.scores = 1 / (1 + np.exp(-served))

    report = compare(judged, scores_while_learning(learned(day), judged, everything), D)
    assert Gate().refusals(report) == [] and report["served"]["auc"] > 0.6

    frozen = compare(judged, scores_of(learned(day).learner, judged), D)
    assert frozen["difference"] < -0.05  # judged without learning it would be refused

    shuffled = day.slice(0, day.size)
    shuffled.labels = rng.permutation(shuffled.labels)
    report = compare(judged, scores_while_learning(learned(shuffled), judged, everything), D)
    (refusal,) = Gate().refusals(report)
    assert refusal.startswith("low, ") and report["difference"] < -0.01


def test_an_example_is_scored_by_what_was_known_when_it_was_shown() -> None:
    """Each clip's label is known 50 s after it was shown first; a second look before that knows nothing of it."""
    shown = batch([1, 1, 1], [0.5] * 3, [1] * 3)
    shown.features = {"user": np.array([7, 7, 7])}
    shown.ts_ms, shown.event_ms = np.array([0, 40_000, 60_000]), np.array([50_000, 90_000, 110_000])
    state = State(Learner(load("logistic", D), Settings(batch=1)), "clips")
    first, second, third = scores_while_learning(state, shown, np.arange(3))[:, 1]
    assert first == second == 0 < third and state.learned[0] == 3


def test_nothing_to_judge_is_no_error_and_no_promotion() -> None:
    for shown in (batch([], [], []), batch([0, 0], [0.5, 0.5], [1, 1]), batch([1, 0], [np.nan] * 2, [1, 1])):
        report = compare(shown, np.zeros((shown.size, 2), np.float32), D)
        assert report["candidate"]["auc"] is None and report["low"] is None
        assert len(Gate().refusals(report)) >= 2


def test_the_interval_holds_what_it_should_and_is_paired() -> None:
    rng = np.random.default_rng(1)
    users = rng.integers(0, 300, 4000)
    labels = (rng.random(4000) < 0.3).astype(float)
    better = labels + rng.normal(0, 1.5, 4000)
    worse = labels + rng.normal(0, 2.5, 4000)
    both = compared(labels, better, worse, users, 0)
    assert both.low < both.difference < both.high and both.low > 0
    assert both.first == auc(labels, better) and both.difference == pytest.approx(both.first - both.second)
    # The same scores in another scale: paired, so there is no difference and no doubt about it.
    assert compared(labels, better, 3 * better, users, 0)[2:] == (0, 0, 0)
    assert all(np.isnan(compared(np.ones(3), better[:3], worse[:3], users[:3], 0)))
