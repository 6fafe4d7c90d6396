"""The interface of a model for all that trains, stores and serves it.

A model is one module of this folder. It defines a subclass of `Model` and names it `build`:

    model = load("deepfm?dim=8", declaration, seed=0)
    outputs = model.outputs(rows, numbers, Context(size))      # task -> logits float32[n]
    value = model.loss(outputs, labels, weights, pi, batch)

Learner, state, delta log, export, served graph, warm start, gate and MLflow know a model by this class alone.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import tensorflow as tf

from common.query import defaults, parameters
from delta_log.manifest import ModelInfo
from streaming.declaration import Declaration
from training.cuckoo import SGD, Adagrad, Segment, Zeros
from training.cuckoo.optimizers import Optimizer
from training.cuckoo.segments import Initializer
from training.models import losses, names

Tensors = Mapping[str, Any]
DEFAULT = "deepfm"


class RowSegment(NamedTuple):
    """`dim` float32 numbers of each row of a table. Without an optimizer they are data, which is never learned."""

    name: str
    dim: int
    optimizer: Optimizer | None
    initializer: Initializer

    def of_table(self) -> Segment:
        """Returns the table's segment. Data has a gradient of zero, so plain SGD does not change it."""
        return Segment(self.dim, self.optimizer or SGD(), self.initializer)


class DenseWeight(NamedTuple):
    """A weight that is not a row: its variable and its optimizer.

    `axes` names the places of each axis that belong to a feature or task, so that the weight outlives the growth of the
    source (training/learn/growth.py). An axis without names is None; () means that no axis has any.
    """

    variable: tf.Variable
    optimizer: Adagrad | SGD
    axes: tuple[Sequence[str] | None, ...] = ()


class Tail(NamedTuple):
    """The table of the short rows of another table's rare ids. At its `after`-th sight an id moves to a long row.

    The last number of both kinds of rows is the count of sights.
    """

    table: str
    after: int


COUNT = RowSegment("count", 1, SGD(1.0), Zeros())
"""The last segment of rows that are counted. Its gradient is the number of sights in a step, with a minus."""


class Context(NamedTuple):
    """A further input of `outputs`: the number of examples, an int32 scalar."""

    size: Any


class Logged(NamedTuple):
    """The values of examples that are known in logging only: `position` int64[n], the item's place in its request.

    A position of -1 is unknown. `shown` float32[n] is 0 for the examples whose logged values, position and logged
    features, training hides.
    """

    position: Any
    shown: Any


class Signature(NamedTuple):
    """A signature of the served model beside `serving_default`: its inputs, and the function of its outputs.

    `call(inputs, rows)` is traced into the served graph; `rows(table, ids int64[n])` gives float32[n, dim], zeros for
    an unknown id. The warm-up calls it with zeros, 2 for each unknown dimension: a version that refuses them does not
    load.
    """

    inputs: dict[str, tf.TensorSpec]
    call: Callable[[Tensors, Callable[[str, Any], Any]], dict[str, Any]]


class Model(ABC):
    """A model of a declaration's features and tasks.

    `tables`: table -> the segments of its rows, in their order. `dense`: name -> weight, in the order of the delta log.
    `tails`: declared table -> the table of its rare ids, which is one of `tables`, too; an id has a row in one of both.
    A subclass fills them in its constructor, whose keyword parameters are the model's settings (beside `seed`).
    """

    info: ModelInfo
    tables: Mapping[str, tuple[RowSegment, ...]]
    dense: Mapping[str, DenseWeight]
    tails: Mapping[str, Tail] = MappingProxyType({})
    dropout = 0.0
    """The share of the impressions whose logged values training hides."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self.row_features = tuple(f.name for f in declaration.served if f.table)
        self.number_features = tuple(f.name for f in declaration.served if not f.table)
        self.logged_features = tuple(f.name for f in declaration.features if f.logged)

    @property
    def dims(self) -> dict[str, int]:
        """Table -> numbers of its rows."""
        return {name: sum(segment.dim for segment in segments) for name, segments in self.tables.items()}

    @property
    def stored(self) -> dict[str, tuple[str, ...]]:
        """Declared table -> the tables that have the rows of its ids, first that of the rare ones."""
        return {t: (self.tails[t].table, t) if t in self.tails else (t,) for t in self.declaration.tables}

    def joined(self, table: str, rows: Tensors) -> Any:
        """Returns the rows float32[n, dim] that `outputs` takes for n ids of a declared table. It is pure.

        `rows`: stored table -> rows float32[n, dim of that table] of the same ids, zeros where it has none.
        """
        return rows[table]

    @abstractmethod
    def outputs(self, rows: Tensors, numbers: Any, context: Context) -> dict[str, Any]:
        """Returns task -> logits float32[n]. It is pure: training and the served graph trace this one function.

        `rows`: feature -> float32[n, dim], joined and pooled (training/models/pooling.py); `numbers`: float32[n, k] in
        declared order.
        """

    def as_logged(self, outputs: Tensors, rows: Tensors, logged: Logged) -> Tensors:
        """Returns the outputs that the loss takes: with the biases of the feedback, which only training knows.

        `rows` has the rows of the logged features, too. The default adds nothing.
        """
        return outputs

    def loss(self, outputs: Tensors, labels: Any, weights: Any, pi: Any, batch: int, values: Any = None) -> Any:
        """Returns sum(weight * loss of the task's kind) / batch, by the formulas of training/models/losses.py.

        Labels, weights and values are float32[n, tasks], and pi float32[n]; only value tasks read `values`. `batch` is
        constant, so that it does not matter in which steps the records of an impression come.
        """
        shifted = self.logits(outputs) - tf.math.log(pi)[:, None]
        if not self.declaration.values:
            return tf.reduce_sum(weights * losses.binary(labels, shifted)) / batch
        each = [
            losses.value(labels[:, k], values[:, k], shifted[:, k], pi)
            if task in self.declaration.values
            else losses.binary(labels[:, k], shifted[:, k])
            for k, task in enumerate(self.declaration.tasks)
        ]
        return tf.reduce_sum(weights * tf.stack(each, axis=1)) / batch

    def logits(self, outputs: Tensors) -> Any:
        """Returns the outputs as one matrix float32[n, tasks]."""
        return tf.stack([outputs[task] for task in self.declaration.tasks], axis=1)

    def scores(self, outputs: Tensors) -> dict[str, Any]:
        """Returns task -> sigmoid(f) float32[n], which `serving_default` answers: the probability of a binary task."""
        return {task: tf.sigmoid(outputs[task]) for task in self.declaration.tasks}

    observed: tuple[str, ...] = ()
    """The names of what `observe` gives. The trainer records the means with each delta."""

    def observe(self, rows: Tensors, numbers: Any) -> Any:
        """Returns float32[n, len(observed)] of the inputs of `outputs`, such as the gates of an MMoE."""
        return tf.zeros([tf.shape(numbers)[0], 0])

    def alarms(self, observed: Mapping[str, float]) -> list[str]:
        """Returns a text for each thing that is wrong by the means of a delta: name of `observed` -> mean."""
        return []

    def signatures(self) -> dict[str, Signature]:
        """Returns the signatures beside `serving_default`; by default there are none."""
        return {}


def load(spec: str, declaration: Declaration, seed: int = 0) -> Model:
    """Builds the model of `spec`, `deepfm` or `deepfm?dim=8&hidden=64x32`, with new dense weights.

    Raises ValueError for an unknown model or setting, and if the model cannot be built for the declaration.
    """
    name, _, query = spec.partition("?")
    return make(ModelInfo(name, parameters(f"model {name!r}", _build(name), query)), declaration, seed)


def make(info: ModelInfo, declaration: Declaration, seed: int = 0) -> Model:
    """Builds the model of a manifest, with new dense weights. Settings that it does not name take their defaults."""
    build = _build(info.name)
    settings = {name: default for name, default in defaults(build).items() if name != "seed"}
    if unknown := sorted(set(info.settings) - set(settings)):
        raise ValueError(f"model {info.name!r}: {unknown[0]!r} is no setting, allowed are {', '.join(settings)}")
    settings |= info.settings
    model = build(declaration, seed=seed, **settings)
    model.info = ModelInfo(info.name, settings)
    return model


def _build(name: str) -> Callable[..., Model]:
    if name not in names():
        raise ValueError(f"model is {name!r}, allowed are {', '.join(names())}")
    build: Callable[..., Model] = importlib.import_module(f"training.models.{name}").build
    return build
