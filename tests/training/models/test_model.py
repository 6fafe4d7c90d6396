"""The seam: how a model is named, built and refused, and what it may ask of learner and served graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from delta_log.log import Log
from delta_log.manifest import LogError, ModelInfo
from delta_log.writer import Writer
from serving.export import warm_up
from serving.graph import Content, Served
from tests.training.models.test_deepfm import SMALL, a_batch
from training.cuckoo import SGD, Adagrad, Constant, Zeros
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.models import names
from training.models.model import Context, DenseWeight, Model, RowSegment, Signature, Tensors, load, make


class Marked(Model):
    """Each row is [a weight that is learned | two numbers that travel]; one dense weight by plain SGD."""

    info = ModelInfo("marked", {})

    def __init__(self) -> None:
        super().__init__(SMALL)
        learned = RowSegment("weight", 1, Adagrad(0.1), Zeros())
        self.tables = dict.fromkeys(SMALL.tables, (learned, RowSegment("mark", 2, None, Constant(7.0))))
        self.dense = {"bias": DenseWeight(tf.Variable(tf.zeros([2])), SGD(0.5))}

    def outputs(self, rows: Tensors, numbers: Any, context: Context) -> dict[str, Any]:
        total = sum(rows[name][:, 0] for name in self.row_features)
        return {task: total + self.dense["bias"].variable[k] for k, task in enumerate(SMALL.tasks)}

    def signatures(self) -> dict[str, Signature]:
        def marks(inputs: Tensors, rows: Callable[[str, Any], Any]) -> dict[str, Any]:
            return {"mark": rows("clip", inputs["clip"])[:, 1:]}

        return {"marks": Signature({"clip": tf.TensorSpec([None], tf.int64, "clip")}, marks)}


def test_a_model_is_named_with_its_settings() -> None:
    assert names() == ["deepfm", "logistic", "mmoe"]
    model = load("deepfm?dim=8&row_rate=0.1", SMALL)
    assert model.info.name == "deepfm" and model.dims == dict.fromkeys(SMALL.tables, 9)
    assert model.info.settings | {"dim": 8, "row_rate": 0.1, "hidden": "128x64"} == model.info.settings
    again = make(ModelInfo("deepfm", {"dim": 8, "row_rate": 0.1}), SMALL)
    assert again.info == model.info and str(load("logistic", SMALL).info) == "logistic?rate=0.05&l1=0.0"


@pytest.mark.parametrize(
    ("spec", "message"),
    {
        "deepfn": "model is 'deepfn', allowed are deepfm, logistic, mmoe",
        "model": "model is 'model', allowed are deepfm, logistic, mmoe",
        "deepfm?dims=8": "model 'deepfm': 'dims=8' is no parameter, allowed are seed=, dim=, hidden=",
        "deepfm?dim=8.5": "model 'deepfm': dim is '8.5', allowed is a value of type int",
        "deepfm?dim=0": "model 'deepfm': dim is 0, allowed is 1 or more",
        "deepfm?hidden=64x": "model 'deepfm': hidden is '64x', allowed are numbers of units such as 128x64",
        "deepfm?seed=3": "model 'deepfm': 'seed' is no setting, allowed are dim, hidden",
        "logistic?rate=0": "learning_rate is 0.0, allowed is a number > 0",
    }.items(),
)
def test_a_wrong_model_is_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        load(spec, SMALL)
    assert message in str(refused.value)


def test_a_segment_without_optimizer_travels_and_is_never_learned() -> None:
    learner = Learner(Marked(), Settings(batch=64))
    for seed in range(3):
        learner.train(a_batch(64, seed))
    for table in learner.tables.values():
        rows = table.export_since(0).rows.numpy()
        assert (rows[:, 1:] == 7).all() and (rows[:, 0] != 0).any()


def test_a_dense_weight_may_learn_by_plain_sgd() -> None:
    learner = Learner(Marked(), Settings(batch=64))
    batch = a_batch(64, 0)
    learner.train(batch)
    # Every logit is 0 at first: the gradient of the bias is the sum of weight * (p - label) / B, p = 1 / (1 + pi).
    p = 1 / (1 + batch.pi)[:, None]
    gradient = (batch.weights * (p - batch.labels)).sum(0) / 64
    np.testing.assert_allclose(learner.weights["bias"].numpy(), -0.5 * gradient, rtol=1e-5)
    assert learner.slots["bias"].shape == [0]


def test_a_model_has_signatures_of_its_own_beside_the_common_ones(tmp_path: Path) -> None:
    rows = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    tables = {name: (np.array([10, 20]), rows) for name in SMALL.tables}
    served = Served(Marked(), Content("000001-0a1b2c3d", 0, 0, tables, 0), None)
    tf.saved_model.save(served, str(tmp_path / "1"), signatures=served.signatures())
    loaded = tf.saved_model.load(str(tmp_path / "1")).signatures
    assert set(loaded) == {"serving_default", "status", "digest", "marks"}
    calls = [PredictionLog.FromString(record).predict_log.request for record in warm_up(served.inputs(), "ranker")]
    assert {call.model_spec.signature_name for call in calls} == set(loaded)
    assert all(dim.size == 2 for call in calls for value in call.inputs.values() for dim in value.tensor_shape.dim)
    for call in calls:
        loaded[call.model_spec.signature_name](**{n: tf.make_ndarray(value) for n, value in call.inputs.items()})
    answer = loaded["marks"](clip=tf.constant([20, 99], tf.int64))["mark"]
    np.testing.assert_array_equal(answer.numpy(), [[5, 6], [0, 0]])


def test_a_lineage_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    log = Log(tmp_path)
    with Writer(log, log.new_lineage()) as writer:
        state = State(Learner(load("deepfm?dim=3", SMALL), Settings(batch=16)), "small")
        writer.first_base(state.cut({}, whole=True))
    newest = log.chain(writer.lineage)[0]
    assert newest.model == load("deepfm?dim=3", SMALL).info
    for spec in ("logistic", "deepfm?dim=4", "deepfm?dim=3&hidden=8"):
        other = State(Learner(load(spec, SMALL), Settings(batch=16)), "small")
        with pytest.raises(LogError, match=f"model is deepfm.*dim=3.*, the trainer's is {spec.partition('?')[0]}"):
            other.restore(log, writer.lineage)
    # A rate shapes nothing: the lineage goes on with another one.
    State(Learner(load("deepfm?dim=3&row_rate=0.01", SMALL), Settings(batch=16)), "small").restore(log, writer.lineage)
