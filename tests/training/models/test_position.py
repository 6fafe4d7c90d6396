"""The shallow tower of what is known in logging only: learned as the formula says, and no part of what is served."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serving.client import inputs
from serving.graph import Content, Served
from streaming.declaration import Declaration, Feature
from streaming.hashing import draw
from tests.support.batches import batch_of
from training.learn.learner import Learner, Settings
from training.models.model import load

PLAIN = Declaration("lists", (Feature("item", "id"), Feature("device", "id", logged=True)), ("click",), "click", 60_000)


def examples(n: int, seed: int = 0, position: int | None = None) -> dict:
    """An item is clicked by its parity, its position and its device alike."""
    rng = np.random.default_rng(seed)
    item, device = rng.integers(0, 40, n), rng.integers(0, 2, n)
    place = rng.integers(-1, 6, n) if position is None else np.full(n, position)
    logit = 2.0 * (item % 2) - 1 - 0.8 * np.maximum(place, 0) + 1.5 * device
    labels = rng.random(n) < 1 / (1 + np.exp(-logit))
    return {"features": {"item": item, "device": device}, "labels": labels[:, None], "position": place}


@pytest.mark.parametrize("model", ["deepfm", "mmoe"])
def test_only_the_loss_has_the_logged_values(model: str) -> None:
    """Each part of the tower comes out as the oracle computes it: f + h * (w_p + r_device), h drawn from the id."""
    learner = Learner(load(f"{model}?dim=2&positions=4&position_dropout=0.5&dense_rate=0.2", PLAIN), Settings(batch=64))
    for seed in range(20):
        learner.train(batch_of(**examples(64, seed)))
    batch = batch_of(**examples(64, 99))
    rows = learner.tables["device"].find(batch.features["device"]).numpy()[:, 0]
    weights = learner.weights["position_weights"].numpy()[:, 0]
    assert np.abs(rows).min() > 0 and np.abs(weights).min() > 0
    place = batch.position
    shown = draw(batch.impression_id, "logged") >= 0.5
    assert 0.2 < shown.mean() < 0.8
    f = learner.score(batch)[:, 0] + shown * (rows + np.where(place < 0, 0, weights[np.minimum(place, 3)]))
    y = batch.labels[:, 0]
    expected = -(y * -np.logaddexp(0, -f) + (1 - y) * -np.logaddexp(0, f)).sum() / 64
    assert learner.train(batch).loss == pytest.approx(expected, rel=1e-4)


def test_positions_of_a_finished_model_change_no_score_and_the_served_graph_has_no_such_input() -> None:
    model = load("deepfm?dim=2&positions=4", PLAIN)
    learner = Learner(model, Settings(batch=64))
    made = examples(64)
    learner.train(batch_of(**made))
    before = learner.score(batch_of(**made))
    made["position"], made["features"]["device"] = made["position"][::-1], made["features"]["device"][::-1]
    np.testing.assert_array_equal(before, learner.score(batch_of(**made)))
    tables = {name: (np.zeros(0, np.int64), np.zeros((0, dim), np.float32)) for name, dim in model.dims.items()}
    served = Served(model, Content("000001-0a1b2c3d", 0, 0, tables, 0), None)
    assert set(served.inputs()["serving_default"]) == {"item"} == set(inputs([{"item": 1, "device": 2}], PLAIN))


def test_a_model_without_the_tower_learns_the_same_whatever_the_position() -> None:
    learned = []
    for position in (0, 5):
        made = {**examples(64), "position": position}
        learner = Learner(load("deepfm?dim=2", replace(PLAIN, features=PLAIN.features[:1])), Settings(batch=64))
        made["features"].pop("device")
        learner.train(batch_of(**made))
        learned.append(learner.score(batch_of(**made)))
    np.testing.assert_array_equal(*learned)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Feature("a", "id", table="item", logged=True), "table 'item' is of a logged and of another feature"),
        ({"kind": "number"}, "feature a: logged with kind 'number' and view 'request', allowed is kind id or ids"),
        ({"kind": "id", "view": "user"}, "feature a: logged with kind 'id' and view 'user', allowed is kind id or ids"),
    ],
)
def test_a_wrong_logged_feature_is_refused_by_name(feature: Feature | dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made = Feature("a", logged=True, **feature) if isinstance(feature, dict) else feature
        Declaration("lists", (Feature("item", "id"), made), ("click",), "click", 60_000)


def test_a_declaration_without_logged_features_has_the_json_of_before() -> None:
    assert "logged" not in replace(PLAIN, features=PLAIN.features[:1]).to_json()
    assert Declaration.from_json(PLAIN.to_json()) == PLAIN


@pytest.mark.parametrize("setting", ["positions=-1", "position_dropout=1"])
def test_a_wrong_tower_is_refused_by_name(setting: str) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(ValueError, match=f"model 'deepfm': {name} is {value}"):
        load(f"deepfm?{setting}", PLAIN)
