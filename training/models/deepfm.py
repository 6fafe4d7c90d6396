"""The ranker: DeepFM over gathered rows, one head a task. Trainer and export share this one forward function.

A feature of kind `id` or `ids` gives a row [linear weight | vector of dim]; `ids` is the mean of its rows, and an
unknown id or an empty list is zeros. With w_i the linear weights, v_i the vectors and x the numbers, task t's logit is

    f_t = b_t + a_t * sum_i w_i + u_t . x  +  c_t * sum_{i<j} <v_i, v_j>  +  h_t . tower([v_1 .. v_m, x])

(Guo et al., DeepFM, IJCAI 2017, arXiv 1703.04247, equations 1-4.) The tasks share the rows and the tower ("shared
bottom"); each has its own bias b_t, head h_t, and scales a_t, c_t of the linear and the pairwise term, so that a rare
task may weigh them otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from streaming.declaration import Declaration

HIDDEN = (128, 64)


class Ranker(tf.Module):  # type: ignore[misc]
    """DeepFM of a declaration's features and tasks. Its rows live in the tables: here are the dense weights only."""

    def __init__(self, declaration: Declaration, hidden: tuple[int, ...] = HIDDEN, seed: int = 0) -> None:
        super().__init__(name="ranker")
        self.declaration = declaration
        self.rows_of = tuple(f.name for f in declaration.features if f.table)
        self.numbers = tuple(f.name for f in declaration.features if not f.table)
        tasks, dim = len(declaration.tasks), declaration.dim
        seeds = iter(range(seed * 100, seed * 100 + 100))

        def dense(units: int, name: str, **options: Any) -> keras.layers.Dense:
            start = keras.initializers.GlorotUniform(seed=next(seeds))
            return keras.layers.Dense(units, kernel_initializer=start, name=name, **options)

        self.tower = [dense(units, f"hidden_{i}", activation="relu") for i, units in enumerate(hidden)]
        self.heads = dense(tasks, "heads")
        width = len(self.rows_of) * dim + len(self.numbers)
        for layer, inputs in zip([*self.tower, self.heads], [width, *hidden], strict=True):
            layer.build((None, inputs))
        self.linear_scale = tf.Variable(tf.ones([tasks]), name="linear_scale")
        self.pair_scale = tf.Variable(tf.ones([tasks]), name="pair_scale")
        self.number_weights = tf.Variable(tf.zeros([len(self.numbers), tasks]), name="number_weights")

    def dense_weights(self) -> dict[str, tf.Variable]:
        """Name -> variable, in the order of the delta log's dense.arrow."""
        weights = {}
        for layer in [*self.tower, self.heads]:
            weights[f"{layer.name}_kernel"] = layer.kernel.value
            weights[f"{layer.name}_bias"] = layer.bias.value
        weights["linear_scale"] = self.linear_scale
        weights["pair_scale"] = self.pair_scale
        if self.numbers:  # a weight of no values has nothing to say
            weights["number_weights"] = self.number_weights
        return weights

    def logits(self, rows: Mapping[str, Any], numbers: Any) -> Any:
        """float32[n, tasks] from feature -> float32[n, row_dim] and numbers float32[n, k], in declared order."""
        fields = tf.stack([rows[name] for name in self.rows_of], axis=1)  # [n, m, 1 + dim]
        linear, vectors = tf.reduce_sum(fields[:, :, 0], axis=1), fields[:, :, 1:]
        # sum_{i<j} <v_i, v_j> = (|sum v|^2 - sum |v|^2) / 2  (Rendle, ICDM 2010, lemma 3.1)
        total = tf.reduce_sum(vectors, axis=1)
        pairs = 0.5 * (tf.reduce_sum(total * total, axis=1) - tf.reduce_sum(vectors * vectors, axis=[1, 2]))
        hidden = tf.concat([tf.reshape(vectors, [-1, len(self.rows_of) * self.declaration.dim]), numbers], axis=1)
        for layer in self.tower:
            hidden = layer(hidden)
        wide = linear[:, None] * self.linear_scale + pairs[:, None] * self.pair_scale
        if self.numbers:
            wide += tf.matmul(numbers, self.number_weights)
        return wide + self.heads(hidden)


def loss(logits: Any, labels: Any, weights: Any, pi: Any, batch: int) -> Any:
    """sum(weight * logloss(sigmoid(f - log pi))) / batch, a scalar; all but pi [n] are float32[n, tasks].

    Keeping negatives with probability pi multiplies the odds by 1 / pi, so f - log pi is the logit of what was kept
    and f that of what was shown (Wang et al., NeurIPS 2021, arXiv 2110.13048, section 4). `batch` is constant, so
    that it does not matter in which steps the records of an impression come.
    """
    shifted = logits - tf.math.log(pi)[:, None]
    return tf.reduce_sum(weights * tf.nn.sigmoid_cross_entropy_with_logits(labels, shifted)) / batch
