"""The common part of the neural rankers: rows, linear and pairwise terms, and the weights of the numbers.

A feature of kind `id` or `ids` has a row [linear weight | vector of dim]. With w_i the linear weights, v_i the vectors
and x the numbers, task t's logit is

    f_t = a_t * sum_i w_i + u_t . x  +  c_t * sum_{i<j} <v_i, v_j>  +  deep_t([v_1 .. v_m, x])

(Guo et al., DeepFM, IJCAI 2017, arXiv 1703.04247, equations 1-2.) The tasks share the rows. Each has its own scales
a_t, c_t of the linear and the pairwise term, so that a rare task may weigh them otherwise. A model of this kind differs
in its deep part: one tower (deepfm.py), or experts and gates (mmoe.py).

With `sizes` a table has shorter rows: v_i = s_i P, with d numbers s_i and a matrix P of the table (sizes.py).

Feedback depends on more than the item: an item at the top of a list is seen more often. In training a shallow tower
takes that out of f. With p the position, r the rows of the logged features, and h = 0 for a share `position_dropout` of
the impressions and 1 for the others, the logit of the loss is

    f_t + h * (w_{p,t} + sum_j r_{j,t})

(Zhao et al., Recommending What Video to Watch Next, RecSys 2019, section 4.3.) Since h is 0 at times, f alone is
trained to be the logit where nothing is known in logging. The served graph computes f, and has no such input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from streaming.declaration import Declaration
from training.cuckoo import Adagrad, Normal, Zeros
from training.models.model import Context, DenseWeight, Logged, Model, RowSegment, Tensors
from training.models.sizes import joined, parsed, stored

Axes = tuple[Sequence[str] | None, ...]


class Ranker(Model):
    """Rows and dense weights with Adagrad. A subclass adds its deep weights with `_declare`, and defines `_deep`.

    `dim`: numbers of a vector. `row_rate`, `dense_rate`: learning rates. `row_start`, `dense_start`: Adagrad's first
    accumulators; gradients carry the 1 / B of the loss, so they are about 0.1 / B^2 for a row, which few examples of a
    batch touch. `row_scale`: standard deviation of a new vector. `positions`: the tower knows so many places of an item
    in its request, and takes all later ones for the last; 0: it knows none. `sizes`: tables with shorter rows.
    """

    def __init__(
        self, declaration: Declaration, *, seed: int, dim: int, row_rate: float, row_start: float, row_scale: float,
        dense_rate: float, dense_start: float, positions: int, position_dropout: float, sizes: str,
    ) -> None:  # fmt: skip
        super().__init__(declaration)
        for name, value, least in (("dim", dim, 1), ("positions", positions, 0)):
            if value < least:
                raise ValueError(f"model {self.name!r}: {name} is {value}, allowed is {least} or more")
        if not 0 <= position_dropout < 1:
            raise ValueError(f"model {self.name!r}: position_dropout is {position_dropout}, allowed is >= 0 and < 1")
        rows = Adagrad(row_rate, start=row_start)
        segments = (RowSegment("linear", 1, rows, Zeros()), RowSegment("vector", dim, rows, Normal(row_scale)))
        bias = (RowSegment("bias", len(declaration.tasks), rows, Zeros()),)
        logged = {f.table for f in declaration.features if f.logged}
        self._sizes = parsed(sizes, self.name, [t for t in declaration.tables if t not in logged], dim)
        self.tables, self.tails = stored(
            {t: bias if t in logged else segments for t in declaration.tables}, self._sizes
        )
        self._dim = dim
        self._positions, self.dropout = positions, position_dropout if positions or logged else 0.0
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

    def as_logged(self, outputs: Tensors, rows: Tensors, logged: Logged) -> Tensors:
        """Adds the tower's logits, by the formula of the module."""
        bias = sum((rows[name] for name in self.logged_features), tf.zeros([1, len(self.declaration.tasks)]))
        if self._positions:
            places = tf.one_hot(tf.minimum(logged.position, self._positions - 1), self._positions)  # -1: zeros
            bias += tf.matmul(places, self.weight("position_weights"))
        bias *= logged.shown[:, None]
        return {task: outputs[task] + bias[:, k] for k, task in enumerate(self.declaration.tasks)}

    def joined(self, table: str, rows: Tensors) -> Any:
        """Returns [linear weight | vector of dim] for each id, by the formula of the module."""
        if table not in self._sizes:
            return rows[table]
        short = rows[self.stored[table][0]]
        return joined(self._sizes[table], short, rows[table], self.weight(f"{table}_projection"))

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
        """Adds the weights of the linear and the pairwise term, of numbers and positions, and the projections."""
        tasks = self.declaration.tasks
        self._declare("linear_scale", keras.Variable(tf.ones([len(tasks)]), name="linear_scale"), (tasks,))
        self._declare("pair_scale", keras.Variable(tf.ones([len(tasks)]), name="pair_scale"), (tasks,))
        if self.number_features:  # else the weight would have no values
            zeros = tf.zeros([len(self.number_features), len(tasks)])
            axes = self.number_features, tasks
            self._declare("number_weights", keras.Variable(zeros, name="number_weights"), axes)
        for table, size in self._sizes.items():
            start = tf.eye(size.dim, self._dim)
            self._declare(f"{table}_projection", keras.Variable(start, name=f"{table}_projection"))
        if self._positions:
            zeros = tf.zeros([self._positions, len(tasks)])
            self._declare("position_weights", keras.Variable(zeros, name="position_weights"), (None, tasks))

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
