"""The ranker on other tables: the same forward function and loss as ours, with rows of Keras or of MutableHashTable.

Both are given places or ids that are there; both score once a step, where ours scores once more before it (unknown ids
read zeros in the test).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from streaming.declaration import Declaration
from streaming.example import Batch, Ragged
from training.learn.learner import Settings
from training.models.deepfm import Ranker, loss


class Net(ABC):
    """What the two have in common: the inputs of a batch, and rows of features out of rows of ids."""

    def __init__(self, declaration: Declaration, settings: Settings) -> None:
        self.declaration, self.settings = declaration, settings
        self.ranker = Ranker(declaration, seed=settings.seed)
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
        numbers = np.stack([batch.features[name] for name in self.ranker.numbers], axis=1)
        return columns, numbers, batch.labels, batch.weights, batch.pi.astype(np.float32)

    def ids(self, table: str, ids: Any) -> Any:
        return ids

    @abstractmethod
    def _step(self, columns: Any, numbers: Any, labels: Any, weights: Any, pi: Any) -> Any:
        """One step on a batch's inputs."""

    def fields(self, columns: Any, row_of: Any) -> dict[str, Any]:
        fields = {}
        for f in self.declaration.features:
            if not f.table:
                continue
            if f.kind == "id":
                fields[f.name] = row_of(f, columns[f.name])
            else:
                values, splits = columns[f.name]
                counts = splits[1:] - splits[:-1]
                owner = tf.repeat(tf.range(tf.size(counts)), counts)
                sums = tf.math.unsorted_segment_sum(row_of(f, values), owner, tf.size(counts))
                fields[f.name] = sums / tf.cast(tf.maximum(counts, 1), tf.float32)[:, None]
        return fields


class KerasNet(Net):
    """An Embedding a table, with a place for each id of the source, and one keras.optimizers.Adagrad."""

    def __init__(self, declaration: Declaration, settings: Settings, vocabulary: dict[str, Any]) -> None:
        super().__init__(declaration, settings)
        self.vocabulary = vocabulary  # table -> its ids, sorted: the place of an id is its place in here
        start = keras.initializers.RandomNormal(0, settings.row_scale)
        self.embeddings = {t: keras.layers.Embedding(len(v), declaration.row_dim, start) for t, v in vocabulary.items()}
        for embedding in self.embeddings.values():
            embedding.build()
        for name in ("linear_scale", "pair_scale", "number_weights"):
            setattr(self.ranker, name, keras.Variable(getattr(self.ranker, name).numpy(), name=name))
        layers = [*self.embeddings.values(), *self.ranker.tower, self.ranker.heads]
        self.variables = [v for layer in layers for v in layer.trainable_variables]
        self.variables += [self.ranker.linear_scale, self.ranker.pair_scale, self.ranker.number_weights]
        self.optimizer = keras.optimizers.Adagrad(settings.row_rate, initial_accumulator_value=settings.row_start)
        self.optimizer.build(self.variables)

    def ids(self, table: str, ids: Any) -> Any:
        return np.searchsorted(self.vocabulary[table], ids)

    def _step(self, columns: Any, numbers: Any, labels: Any, weights: Any, pi: Any) -> Any:
        with tf.GradientTape() as tape:
            fields = self.fields(columns, lambda f, places: self.embeddings[f.table](places))
            value = loss(self.ranker.logits(fields, numbers), labels, weights, pi, self.settings.batch)
        gradients = tape.gradient(value, [v.value for v in self.variables])
        self.optimizer.apply(gradients, self.variables)
        return value


class MutableNet(Net):
    """Rows and accumulators in a MutableHashTable each: found, changed by Adagrad in the graph, inserted."""

    def __init__(self, declaration: Declaration, settings: Settings) -> None:
        super().__init__(declaration, settings)
        dim = declaration.row_dim
        new = tf.lookup.experimental.MutableHashTable
        start = tf.random.stateless_normal([dim], [0, 0], 0, settings.row_scale)
        self.rows = {t: new(tf.int64, tf.float32, start) for t in declaration.tables}
        self.sums = {t: new(tf.int64, tf.float32, tf.fill([dim], settings.row_start)) for t in declaration.tables}
        self.dense = list(self.ranker.dense_weights().values())
        self.totals = [tf.Variable(tf.fill(w.shape, settings.dense_start)) for w in self.dense]

    def _step(self, columns: Any, numbers: Any, labels: Any, weights: Any, pi: Any) -> Any:
        ids, where, rows = {}, {}, {}
        for table in self.declaration.tables:
            mine = [f for f in self.declaration.features if f.table == table]
            flat = [columns[f.name][0] if f.kind == "ids" else columns[f.name] for f in mine]
            ids[table], places = tf.unique(tf.concat(flat, 0))
            rows[table] = self.rows[table].lookup(ids[table])
            for f, part in zip(mine, tf.split(places, [tf.size(x) for x in flat], num=len(flat)), strict=True):
                where[f.name] = part
        with tf.GradientTape() as tape:
            tape.watch(list(rows.values()))
            fields = self.fields(columns, lambda f, _: tf.gather(rows[f.table], where[f.name]))
            value = loss(self.ranker.logits(fields, numbers), labels, weights, pi, self.settings.batch)
        of_rows, of_dense = tape.gradient(value, [rows, self.dense])
        for table, gradient in of_rows.items():
            gradient = tf.convert_to_tensor(gradient)
            total = self.sums[table].lookup(ids[table]) + gradient * gradient
            self.sums[table].insert(ids[table], total)
            step = self.settings.row_rate * gradient * tf.math.rsqrt(total)
            self.rows[table].insert(ids[table], rows[table] - step)
        for weight, total, gradient in zip(self.dense, self.totals, of_dense, strict=True):
            total.assign_add(gradient * gradient)
            weight.assign_sub(self.settings.dense_rate * gradient * tf.math.rsqrt(total))
        return value
