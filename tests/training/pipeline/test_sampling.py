"""Sampling of negatives: what is kept, what pi says, and that a model of what is left is calibrated."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from streaming.declaration import Declaration, Feature
from streaming.hashing import draw
from training.pipeline.sampling import Sampling, rates, sample, write

DECLARATION = Declaration("shop", (Feature("user", "id"), Feature("x", "number")), ("click",), "click", 60_000)
TRUE = (-2.0, 1.2)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def examples(n: int, pi: float = 1.0, seed: int = 0, scored: float = 1.0) -> pa.Table:
    """n impressions of a known model as the join keeps them, one in 1 / scored of them scored by a pilot that errs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    clicked = rng.random(n) < sigmoid(TRUE[0] + TRUE[1] * x)
    score = sigmoid(TRUE[0] + 0.5 + 0.7 * TRUE[1] * x)
    ids = pa.array([f"i{k}" for k in range(n)])
    joined = clicked | (draw(ids, "join") < pi)
    table = pa.table(
        {
            "impression_id": ids,
            "kind": np.where(clicked, "positive", "negative"),
            "event_ms": pa.array(np.arange(n)),
            "pi": np.full(n, pi),
            "label_click": clicked.astype(np.float32),
            "score_click": pa.array(score.astype(np.float32), mask=rng.random(n) >= scored),
            "feature_x": x,
        }
    )
    return table.filter(pa.array(joined))


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def fit(table: pa.Table, pi: np.ndarray) -> np.ndarray:
    """Intercept and slope of the maximum likelihood of sigmoid(f - log pi), by Newton's method."""
    y = column(table, "label_click")
    design = np.stack([np.ones(len(y)), column(table, "feature_x")], axis=1)
    w = np.zeros(2)
    for _ in range(20):
        p = sigmoid(design @ w - np.log(pi))
        w += np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design, design.T @ (y - p))
    return w


@pytest.mark.parametrize(
    "sampling",
    [Sampling("uniform", keep=0.3), Sampling("pilot", keep=0.3), Sampling("pilot", keep=0.3, pilot="another")],
)
def test_what_is_sampled_twice_is_calibrated(sampling):
    whole = examples(120_000, pi=0.5)
    other = sigmoid(0.5 - 0.8 * column(whole, "feature_x"))  # a model that has it the wrong way round
    table = sample(whole, DECLARATION, sampling, other if sampling.pilot == "another" else None)
    pi, y = column(table, "pi"), column(table, "label_click")
    truth = sigmoid(TRUE[0] + TRUE[1] * column(table, "feature_x") - np.log(pi))
    assert abs(truth.mean() - y.mean()) < 4 * np.sqrt((truth * (1 - truth)).mean() / len(y))
    assert fit(table, pi) == pytest.approx(TRUE, abs=0.06)
    # With the second pi alone every prediction would be off by the first: log 2 in the intercept.
    assert fit(table, pi / 0.5)[0] - fit(table, pi)[0] == pytest.approx(np.log(2), abs=0.01)


@pytest.mark.parametrize("sampling", [Sampling("uniform", keep=0.3), Sampling("pilot", keep=0.3, floor=0.05)])
def test_a_share_of_negatives_and_every_positive_stays_and_pi_is_multiplied(sampling):
    before = examples(50_000, pi=0.5)
    after = sample(before, DECLARATION, sampling)
    negatives = [int((column(t, "kind") == "negative").sum()) for t in (before, after)]
    assert negatives[1] / negatives[0] == pytest.approx(0.3, abs=0.01)
    assert (column(after, "kind") == "positive").sum() == (column(before, "kind") == "positive").sum()
    first = dict(zip(before["impression_id"].to_pylist(), column(before, "pi"), strict=True))
    second = column(after, "pi") / [first[i] for i in after["impression_id"].to_pylist()]
    assert second.max() <= 1
    if sampling.method == "uniform":
        assert second == pytest.approx(0.3)
    else:
        assert second.min() >= 0.05 - 1e-12
        score, free = column(after, "score_click"), second < 1
        high = free & (second > 0.05 + 1e-9)
        # In between pi' is the pilot's score times one constant, for positives and negatives alike.
        assert second[high] / score[high] == pytest.approx(float((second[high] / score[high])[0]), rel=1e-5)


def test_the_two_draws_are_independent():
    ids = pa.array([f"i{k}" for k in range(50_000)])
    both = (draw(ids, "join") < 0.5) & (draw(ids, Sampling().salt) < 0.3)
    assert both.mean() == pytest.approx(0.15, abs=0.006)


def test_an_impression_that_nothing_scored_counts_as_average():
    negative = np.ones(4, bool)
    pilot = Sampling("pilot", keep=0.25, floor=0.01)
    result = rates(np.array([0.1, 0.3, np.nan, 0.2]), negative, pilot)
    assert result[2] == pytest.approx(result[3])
    assert result.mean() == pytest.approx(0.25)
    assert rates(np.full(4, np.nan), negative, pilot) == pytest.approx(0.25)
    assert len(rates(np.zeros(0), np.zeros(0, bool), pilot)) == 0


def test_a_pilot_that_must_keep_all_keeps_all():
    assert rates(np.array([0.001, 0.9]), np.ones(2, bool), Sampling("pilot", keep=1.0)) == pytest.approx(1.0)


def test_the_same_examples_give_the_same_bytes(tmp_path):
    table = examples(5_000, scored=0.9)
    parts = pa.concat_tables([table.slice(0, 1_234), table.slice(1_234)])  # as another compaction would hand them over
    one = write(sample(table, DECLARATION, Sampling()), tmp_path / "a" / "examples.parquet")
    two = write(sample(parts, DECLARATION, Sampling()), tmp_path / "b" / "examples.parquet")
    assert one == two
    assert (tmp_path / "a" / "examples.parquet").read_bytes() == (tmp_path / "b" / "examples.parquet").read_bytes()
    assert write(sample(table, DECLARATION, Sampling(keep=0.4)), tmp_path / "c.parquet") != one
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["examples.parquet"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "some"}, "method is 'some'; allowed are uniform, pilot"),
        ({"keep": 0.0}, "keep is 0.0; allowed is a number above 0, up to 1"),
        ({"floor": 2.0}, "floor is 2.0"),
        ({"keep": 0.1, "floor": 0.2}, "allowed is floor <= keep"),
        ({"method": "uniform", "pilot": "champion"}, "pilot is 'champion' and method uniform; allowed is method pilot"),
    ],
)
def test_a_wrong_setting_is_named(settings, text):
    with pytest.raises(ValueError, match=text):
        Sampling(**settings)
