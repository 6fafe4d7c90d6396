"""The common part of the neural rankers: rows, linear and pairwise terms, and the weights of the numbers.

A feature of kind `id` or `ids` has a row [linear weight | vector of dim]. With w_i the linear weights, v_i the vectors
and x the numbers, task t's logit is

    f_t = a_t * sum_i w_i + u_t . x  +  c_t * sum_{i<j} <v_i, v_j>  +  deep_t([v_1 .. v_m, x])

(Guo et al., DeepFM, IJCAI 2017, arXiv 1703.04247, equations 1-2.) The tasks share the rows. Each has its own scales
a_t, c_t of the linear and the pairwise term, so that a rare task may weigh them otherwise. A model of this kind differs
in its deep part: one tower (deepfm.py), or experts and gates (mmoe.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from streaming.declaration import Declaration
from training.cuckoo import Adagrad, Normal, Zeros
from training.models.model import Context, DenseWeight, Model, RowSegment, Tensors

Axes = tuple[Sequence[str] | None, ...]


class Ranker(Model):
    """Rows and dense weights with Adagrad. A subclass adds its deep weights with `_declare`, and defines `_deep`.

    `dim`: numbers of a vector. `row_rate`, `dense_rate`: learning rates. `row_start`, `dense_start`: Adagrad's first
    accumulators; gradients carry the 1 / B of the loss, so they are about 0.1 / B^2 for a row, which few examples of a
    batch touch. `row_scale`: standard deviation of a new vector.
    """

    def __init__(
        self, declaration: Declaration, *, seed: int, dim: int, row_rate: float, row_start: float, row_scale: float,
        dense_rate: float, dense_start: float,
    ) -> None:  # fmt: skip
        super().__init__(declaration)
        if dim < 1:
            raise ValueError(f"model {self.name!r}: dim is {dim}, allowed is 1 or more")
        rows = Adagrad(row_rate, start=row_start)
        segments = (RowSegment("linear", 1, rows, Zeros()), RowSegment("vector", dim, rows, Normal(row_scale)))
        self.tables = dict.fromkeys(declaration.tables, segments)
        self.inputs = [f"{name}/{i}" for name in self.row_features for i in range(dim)] + list(self.number_features)
        """The names of the deep part's inputs, in their order."""
        self.variables: dict[str, keras.Variable] = {}  # as Keras has them
        self.dense: dict[str, DenseWeight] = {}
        self._optimizer = Adagrad(dense_rate, start=dense_start, epsilon=0)
        self._seeds = iter(range(seed * 100, seed * 100 + 100))

    @property
    def name(self) -> str:
        """The name of the model's module, for errors."""
        return type(self).__module__.rpartition(".")[2]

    def outputs(self, rows: Tensors, numbers: Any, context: Context) -> dict[str, Any]:
        """Returns task -> logits float32[n], by the formula of the module."""
        fields = self._fields(rows)
        linear, vectors = tf.reduce_sum(fields[:, :, 0], axis=1), fields[:, :, 1:]
        # sum_{i<j} <v_i, v_j> = (|sum v|^2 - sum |v|^2) / 2  (Rendle, ICDM 2010, lemma 3.1)
        total = tf.reduce_sum(vectors, axis=1)
        pairs = 0.5 * (tf.reduce_sum(total * total, axis=1) - tf.reduce_sum(vectors * vectors, axis=[1, 2]))
        logits = linear[:, None] * self.weight("linear_scale") + pairs[:, None] * self.weight("pair_scale")
        if self.number_features:
            logits += tf.matmul(numbers, self.weight("number_weights"))
        tasks = self.declaration.tasks
        return dict(
            zip(tasks, tf.unstack(logits + self._deep(self._inputs(vectors, numbers)), len(tasks), axis=1), strict=True)
        )

    def _fields(self, rows: Tensors) -> Any:
        """Returns the rows of all features: float32[n, m, 1 + dim]."""
        return tf.stack([rows[name] for name in self.row_features], axis=1)

    def _inputs(self, vectors: Any, numbers: Any) -> Any:
        """Returns the deep part's inputs float32[n, inputs] of vectors float32[n, m, dim] and the numbers."""
        width = len(self.inputs) - len(self.number_features)
        return tf.concat([tf.reshape(vectors, [-1, width]), numbers], axis=1)

    @abstractmethod
    def _deep(self, inputs: Any) -> Any:
        """Returns the deep part's logits float32[n, tasks] of float32[n, inputs]."""

    def weight(self, name: str) -> tf.Variable:
        """The variable of a dense weight."""
        return self.dense[name].variable

    def _declare_wide(self) -> None:
        """Adds the weights of the linear and the pairwise term and of the numbers."""
        tasks = self.declaration.tasks
        self._declare("linear_scale", keras.Variable(tf.ones([len(tasks)]), name="linear_scale"), (tasks,))
        self._declare("pair_scale", keras.Variable(tf.ones([len(tasks)]), name="pair_scale"), (tasks,))
        if self.number_features:  # else the weight would have no values
            zeros = tf.zeros([len(self.number_features), len(tasks)])
            axes = self.number_features, tasks
            self._declare("number_weights", keras.Variable(zeros, name="number_weights"), axes)

    def _declare(self, name: str, variable: keras.Variable, axes: Axes = ()) -> None:
        """Adds a dense weight; `axes` as of DenseWeight."""
        self.variables[name] = variable
        self.dense[name] = DenseWeight(variable.value, self._optimizer, axes)

    def _layer(self, name: str, inputs: int, units: int, axes: Axes = (None, None), **options: Any) -> Any:
        """Returns a Keras layer [inputs, units], whose kernel and bias it adds; `axes` are of the kernel."""
        start = keras.initializers.GlorotUniform(seed=next(self._seeds))
        layer = keras.layers.Dense(units, kernel_initializer=start, name=name, **options)
        layer.build((None, inputs))
        self._declare(f"{name}_kernel", layer.kernel, axes)
        self._declare(f"{name}_bias", layer.bias, axes[1:])
        return layer
