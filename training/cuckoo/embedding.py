"""A Keras layer around the table, so that `model.fit` trains its rows.

    video = Embedding(Table(16, "video", optimizer=Adagrad(0.05)))
    model = tf.keras.Sequential([tf.keras.Input((), dtype=tf.int64), video, tf.keras.layers.Dense(1)])
    model.compile(optimizer="adam", loss="mse")                      # of the dense weights: rows have their own
    model.fit(ids, labels)

The layer's gradient is a step of the table's optimizer. The layer takes it when a tape asks for the gradient of the
layer's trainable weights, as Keras' `train_step` does, inside or outside of a tf.function. The weight `anchor` only
makes a tape ask; its gradient is 0. To get the rows' gradients, watch `table.lookup(ids)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from training.cuckoo.table import Table


class Embedding(tf.keras.layers.Layer):  # type: ignore[misc]
    """A layer that returns the rows of `table` for ids of any shape [...]: float32[..., dim].

    In training it inserts a new id; otherwise a new id reads zeros. An id that repeats in a call takes one step with
    the sum of its gradients. Two calls of the layer in one step of a model are two steps, so pass all ids at once.
    `learning_rate` (default: that of each segment's optimizer) is a number, a variable, a Keras schedule over the
    layer's own steps, or a function without arguments. `trainable = False` freezes the rows.
    """

    def __init__(self, table: Table, learning_rate: float | Callable[..., Any] | Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table, self.learning_rate = table, learning_rate
        self.supports_jit = False  # XLA cannot compile the table's ops

    def build(self, input_shape: Any) -> None:
        self.anchor = self.add_weight(name="anchor", shape=(), dtype="float32", initializer="zeros")
        self.steps = self.add_weight(name="steps", shape=(), dtype="int64", initializer="zeros", trainable=False)

    def call(self, ids: Any, training: bool | None = None) -> Any:
        flat = tf.reshape(tf.cast(ids, tf.int64), [-1])
        rows = self._learned(flat) if training and self.trainable else self.table.find(flat)
        return tf.reshape(rows, tf.concat([tf.shape(ids), [self.table.dim]], 0))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape, self.table.dim)

    def _learned(self, ids: Any) -> Any:
        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def looked_up(anchor: Any) -> tuple[Any, Callable[[Any], Any]]:
            def step(gradients: Any) -> Any:
                self.table.apply(ids, gradients, self._rate())
                self.steps.assign_add(1)
                return tf.zeros_like(anchor)

            return self.table.lookup(ids), step

        return looked_up(tf.convert_to_tensor(self.anchor))

    def _rate(self) -> Any:
        if isinstance(self.learning_rate, tf.keras.optimizers.schedules.LearningRateSchedule):
            return self.learning_rate(tf.convert_to_tensor(self.steps))
        return self.learning_rate() if callable(self.learning_rate) else self.learning_rate
