"""The ranker on other tables: our forward function and loss, with rows of Keras or of MutableHashTable.

Both get only ids that are in their tables. Both score once a step; ours scores once more before it, to test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.query import defaults
from streaming.declaration import Declaration
from streaming.example import Batch, Ragged
from training.learn.learner import Settings
from training.models.deepfm import DeepFM
from training.models.model import Context
from training.models.pooling import pooled


class Net(ABC):
    """The common part of both: the inputs of a batch, and the loss of rows."""

    def __init__(self, declaration: Declaration, settings: Settings) -> None:
        self.declaration, self.settings = declaration, settings
        self.model = DeepFM(declaration, seed=settings.seed)
        self.dim = next(iter(self.model.dims.values()))
        self.rates = defaults(DeepFM)
        self.train = tf.function(self._step, reduce_retracing=True)

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        columns: dict[str, Any] = {}
        for f in self.declaration.features:
            if f.table:
                column = batch.features[f.name]
                if isinstance(column, Ragged):
                    columns[f.name] = (self.ids(f.table, column.values), column.row_splits)
                else:
                    columns[f.name] = self.ids(f.table, column)
        numbers = np.stack([batch.features[name] for name in self.model.number_features], axis=1)
        return columns, numbers, batch.labels, batch.weights, batch.pi.astype(np.float32)

    def ids(self, table: str, ids: Any) -> Any:
        return ids

    @abstractmethod
    def _step(self, columns: Any, numbers: Any, labels: Any, weights: Any, pi: Any) -> Any:
        """Learns one batch. Returns the loss."""

    def loss(self, columns: Any, row_of: Any, numbers: Any, labels: Any, weights: Any, pi: Any) -> Any:
        """The loss with the rows that `row_of(feature, ids)` gives."""
        rows, splits = {}, {}
        for f in self.declaration.features:
            if f.kind == "ids":
                rows[f.name], splits[f.name] = row_of(f, columns[f.name][0]), columns[f.name][1]
            elif f.table:
                rows[f.name] = row_of(f, columns[f.name])
        outputs = self.model.outputs(pooled(rows, splits), numbers, Context(tf.shape(numbers)[0]))
        return self.model.loss(outputs, labels, weights, pi, self.settings.batch)


class KerasNet(Net):
    """One Embedding for each table, with a place for each id of the source, and one keras.optimizers.Adagrad."""

    def __init__(self, declaration: Declaration, settings: Settings, vocabulary: dict[str, Any]) -> None:
        super().__init__(declaration, settings)
        self.vocabulary = vocabulary  # table -> its ids, sorted; an id's row has the id's place in this array
        start = keras.initializers.RandomNormal(0, self.rates["row_scale"])
        self.embeddings = {t: keras.layers.Embedding(len(v), self.dim, start) for t, v in vocabulary.items()}
        for embedding in self.embeddings.values():
            embedding.build()
        rows = [v for embedding in self.embeddings.values() for v in embedding.trainable_variables]
        self.variables = [*rows, *self.model.variables.values()]
        self.optimizer = keras.optimizers.Adagrad(
            self.rates["row_rate"], initial_accumulator_value=self.rates["row_start"]
        )
        self.optimizer.build(self.variables)

    def ids(self, table: str, ids: Any) -> Any:
        return np.searchsorted(self.vocabulary[table], ids)

    def _step(self, columns: Any, numbers: Any, labels: Any, weights: Any, pi: Any) -> Any:
        with tf.GradientTape() as tape:
            value = self.loss(columns, lambda f, places: self.embeddings[f.table](places), numbers, labels, weights, pi)
        gradients = tape.gradient(value, [v.value for v in self.variables])
        self.optimizer.apply(gradients, self.variables)
        return value


class MutableNet(Net):
    """A MutableHashTable of rows and one of accumulators: looked up, changed by Adagrad in the graph, inserted."""

    def __init__(self, declaration: Declaration, settings: Settings) -> None:
        super().__init__(declaration, settings)
        dim = self.dim
        new = tf.lookup.experimental.MutableHashTable
        start = tf.random.stateless_normal([dim], [0, 0], 0, self.rates["row_scale"])
        self.rows = {t: new(tf.int64, tf.float32, start) for t in declaration.tables}
        self.sums = {t: new(tf.int64, tf.float32, tf.fill([dim], self.rates["row_start"])) for t in declaration.tables}
        self.dense = [weight.variable for weight in self.model.dense.values()]
        self.totals = [tf.Variable(tf.fill(w.shape, self.rates["dense_start"])) for w in self.dense]

    def _step(self, columns: Any, numbers: Any, labels: Any, weights: Any, pi: Any) -> Any:
        ids, places_of, rows = {}, {}, {}
        for table in self.declaration.tables:
            features = [f for f in self.declaration.features if f.table == table]
            flat = [columns[f.name][0] if f.kind == "ids" else columns[f.name] for f in features]
            ids[table], places = tf.unique(tf.concat(flat, 0))
            rows[table] = self.rows[table].lookup(ids[table])
            for f, part in zip(features, tf.split(places, [tf.size(x) for x in flat], num=len(flat)), strict=True):
                places_of[f.name] = part
        with tf.GradientTape() as tape:
            tape.watch(list(rows.values()))
            value = self.loss(
                columns, lambda f, _: tf.gather(rows[f.table], places_of[f.name]), numbers, labels, weights, pi
            )
        of_rows, of_dense = tape.gradient(value, [rows, self.dense])
        for table, gradient in of_rows.items():
            gradient = tf.convert_to_tensor(gradient)
            total = self.sums[table].lookup(ids[table]) + gradient * gradient
            self.sums[table].insert(ids[table], total)
            step = self.rates["row_rate"] * gradient * tf.math.rsqrt(total)
            self.rows[table].insert(ids[table], rows[table] - step)
        for weight, total, gradient in zip(self.dense, self.totals, of_dense, strict=True):
            total.assign_add(gradient * gradient)
            weight.assign_sub(self.rates["dense_rate"] * gradient * tf.math.rsqrt(total))
        return value
