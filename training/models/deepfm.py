"""DeepFM over gathered rows, one head a task.

A feature of kind `id` or `ids` has a row [linear weight | vector of dim]. With w_i the linear weights, v_i the vectors
and x the numbers, task t's logit is

    f_t = b_t + a_t * sum_i w_i + u_t . x  +  c_t * sum_{i<j} <v_i, v_j>  +  h_t . tower([v_1 .. v_m, x])

(Guo et al., DeepFM, IJCAI 2017, arXiv 1703.04247, equations 1-4.) The tasks share the rows and the tower ("shared
bottom"); each has its own bias b_t, head h_t, and scales a_t, c_t of the linear and the pairwise term, so that a rare
task may weigh them otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from streaming.declaration import Declaration
from training.cuckoo import Adagrad, Normal, Zeros
from training.models.model import Context, DenseWeight, Model, RowSegment, Tensors


class DeepFM(Model):
    """DeepFM with Adagrad on rows and dense weights.

    `dim`: numbers of a vector. `hidden`: units of the tower's layers, "128x64". `row_rate`, `dense_rate`: learning
    rates. `row_start`, `dense_start`: Adagrad's first accumulators; gradients carry the 1 / B of the loss, so they are
    about 0.1 / B^2 for a row, which few examples of a batch touch. `row_scale`: standard deviation of a new vector.
    """

    def __init__(
        self, declaration: Declaration, *, seed: int = 0, dim: int = 16, hidden: str = "128x64",
        row_rate: float = 0.05, row_start: float = 1e-7, row_scale: float = 0.02, dense_rate: float = 0.05,
        dense_start: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__(declaration)
        units = _units(hidden)
        self._width = len(self.row_features) * dim
        if dim < 1:
            raise ValueError(f"model 'deepfm': dim is {dim}, allowed is 1 or more")
        rows = Adagrad(row_rate, start=row_start)
        segments = (RowSegment("linear", 1, rows, Zeros()), RowSegment("vector", dim, rows, Normal(row_scale)))
        self.tables = dict.fromkeys(declaration.tables, segments)
        tasks = len(declaration.tasks)
        seeds = iter(range(seed * 100, seed * 100 + 100))

        def layer(units: int, name: str, **options: Any) -> keras.layers.Dense:
            start = keras.initializers.GlorotUniform(seed=next(seeds))
            return keras.layers.Dense(units, kernel_initializer=start, name=name, **options)

        self._tower = [layer(n, f"hidden_{i}", activation="relu") for i, n in enumerate(units)]
        self._heads = layer(tasks, "heads")
        width = self._width + len(self.number_features)
        variables: dict[str, keras.Variable] = {}
        for dense, inputs in zip([*self._tower, self._heads], [width, *units], strict=True):
            dense.build((None, inputs))
            variables |= {f"{dense.name}_kernel": dense.kernel, f"{dense.name}_bias": dense.bias}
        variables["linear_scale"] = keras.Variable(tf.ones([tasks]), name="linear_scale")
        variables["pair_scale"] = keras.Variable(tf.ones([tasks]), name="pair_scale")
        if self.number_features:  # else the weight would have no values
            zeros = tf.zeros([len(self.number_features), tasks])
            variables["number_weights"] = keras.Variable(zeros, name="number_weights")
        self.variables = variables  # as Keras has them
        optimizer = Adagrad(dense_rate, start=dense_start, epsilon=0)
        inputs_of = [f"{name}/{i}" for name in self.row_features for i in range(dim)] + list(self.number_features)
        of_tasks = declaration.tasks
        axes: dict[str, tuple[Sequence[str] | None, ...]] = {
            "hidden_0_kernel": (inputs_of, None), "number_weights": (self.number_features, of_tasks),
            "heads_kernel": (None, of_tasks), "heads_bias": (of_tasks,), "linear_scale": (of_tasks,),
            "pair_scale": (of_tasks,),
        }  # fmt: skip
        self.dense = {
            name: DenseWeight(variable.value, optimizer, axes.get(name, ())) for name, variable in variables.items()
        }

    def outputs(self, rows: Tensors, numbers: Any, context: Context) -> dict[str, Any]:
        """Returns task -> logits float32[n], by the formula of the module."""
        fields = tf.stack([rows[name] for name in self.row_features], axis=1)  # [n, m, 1 + dim]
        linear, vectors = tf.reduce_sum(fields[:, :, 0], axis=1), fields[:, :, 1:]
        # sum_{i<j} <v_i, v_j> = (|sum v|^2 - sum |v|^2) / 2  (Rendle, ICDM 2010, lemma 3.1)
        total = tf.reduce_sum(vectors, axis=1)
        pairs = 0.5 * (tf.reduce_sum(total * total, axis=1) - tf.reduce_sum(vectors * vectors, axis=[1, 2]))
        hidden = tf.concat([tf.reshape(vectors, [-1, self._width]), numbers], axis=1)
        for layer in self._tower:
            hidden = layer(hidden)
        weight = {name: dense.variable for name, dense in self.dense.items()}
        wide = linear[:, None] * weight["linear_scale"] + pairs[:, None] * weight["pair_scale"]
        if self.number_features:
            wide += tf.matmul(numbers, weight["number_weights"])
        tasks = self.declaration.tasks
        return dict(zip(tasks, tf.unstack(wide + self._heads(hidden), len(tasks), axis=1), strict=True))


def _units(hidden: str) -> list[int]:
    try:
        units = [int(text) for text in hidden.split("x")]
        if min(units) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"model 'deepfm': hidden is {hidden!r}, allowed are numbers of units such as 128x64") from None
    return units


build = DeepFM
