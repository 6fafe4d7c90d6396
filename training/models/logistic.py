"""Logistic regression: a weight a row and a number, one set a task.

With w_i the rows of the features (one number a task), x the numbers: f_t = b_t + sum_i w_{i,t} + u_t . x. The mean of
its rows stands for a list. It is the plain model that a stronger one must beat.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from streaming.declaration import Declaration
from training.cuckoo import FTRL, Adagrad, Zeros
from training.models.model import Context, DenseWeight, Model, RowSegment, Tensors


class Logistic(Model):
    """Logistic regression with FTRL on rows (McMahan et al., KDD 2013) and Adagrad on the dense weights.

    `rate`: learning rate of both. `l1`: makes rows of little use exactly zero.
    """

    def __init__(self, declaration: Declaration, *, seed: int = 0, rate: float = 0.05, l1: float = 0.0) -> None:
        super().__init__(declaration)
        tasks = len(declaration.tasks)
        linear = RowSegment("linear", tasks, FTRL(rate, start=1e-7, l1=l1), Zeros())
        self.tables = dict.fromkeys(declaration.tables, (linear,))
        self._bias = tf.Variable(tf.zeros([tasks]), name="bias")
        self._number_weights = tf.Variable(tf.zeros([len(self.number_features), tasks]), name="number_weights")
        optimizer = Adagrad(rate, start=1e-6, epsilon=0)
        self.dense = {"bias": DenseWeight(self._bias, optimizer, (declaration.tasks,))}
        if self.number_features:  # else the weight would have no values
            axes = self.number_features, declaration.tasks
            self.dense["number_weights"] = DenseWeight(self._number_weights, optimizer, axes)

    def outputs(self, rows: Tensors, numbers: Any, context: Context) -> dict[str, Any]:
        """Returns task -> logits float32[n], by the formula of the module."""
        logits = tf.fill([context.size, 1], 1.0) * self._bias
        for name in self.row_features:
            logits += rows[name]
        if self.number_features:
            logits += tf.matmul(numbers, self._number_weights)
        tasks = self.declaration.tasks
        return dict(zip(tasks, tf.unstack(logits, len(tasks), axis=1), strict=True))


build = Logistic
