"""One step of training: ids to rows, the model, the loss, the optimizers of rows and dense weights.

    learner = Learner(load("deepfm", declaration), Settings())
    outcome = learner.train(batch)  # logits before the step: float32[n, tasks], and the loss
    logits = learner.score(batch)  # changes nothing

Ids are made unique a table (features may share one), so a row that many examples use takes one step with the sum of
its gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from streaming.example import Batch, Ragged
from streaming.hashing import draw
from training.cuckoo import SGD, Adagrad, Admission, Table
from training.learn.tails import TailTable, counted
from training.models.model import Context, Logged, Model
from training.models.pooling import pooled


@dataclass(frozen=True)
class Settings:
    """`batch` is the constant B of the loss and the largest step; `seed` is of the rows' first values.

    `dense_rate` is the factor of the dense weights' learning rates; 0 holds them.
    """

    batch: int = 512
    seed: int = 0
    dense_rate: float = 1.0


class Outcome(NamedTuple):
    """The logits float32[n, tasks] of a step before it changed anything, and its loss.

    `promoted`: table of rare ids -> the keys int64[m] that left it, because they have a long row now.
    """

    logits: npt.NDArray[np.float32]
    loss: float
    promoted: dict[str, npt.NDArray[np.int64]]


class Learner:
    """The state that a step changes: the tables, the model, and its optimizers' slots.

    `weights`: name -> dense weight. `slots`: name -> the slots of its optimizer, of the weight's shape or empty.
    """

    def __init__(self, model: Model, settings: Settings | None = None) -> None:
        self.model, self.declaration = model, model.declaration
        self.settings = settings = settings or Settings()
        self.tables = {}
        self._table_of = {name: table for table, names in model.stored.items() for name in names}
        for name, segments in model.tables.items():
            policy = self.declaration.policy(self._table_of[name])
            admission = Admission(policy.admit_after, policy.admit_probability, policy.pending_ids)
            self.tables[name] = Table([s.of_table() for s in segments], name, admission=admission, seed=settings.seed)
        self._tails = {table: TailTable(model, table, self.tables) for table in model.tails}
        self.weights = {name: weight.variable for name, weight in model.dense.items()}
        self.slots = {name: _slots(model, name) for name in model.dense}
        # Ids of any number, examples of any number: one trace.
        features = {
            f.name: (tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.int64))
            if f.kind == "ids"
            else tf.TensorSpec([None], tf.int64)
            for f in self.declaration.features
            if f.table
        }
        numbers = tf.TensorSpec([None, len(model.number_features)], tf.float32)
        matrix = tf.TensorSpec([None, len(self.declaration.tasks)], tf.float32)
        vector = tf.TensorSpec([None], tf.float32)
        logged = Logged(tf.TensorSpec([None], tf.int64), vector)
        self._train = tf.function(
            self._step, input_signature=[features, numbers, logged, matrix, matrix, matrix, vector]
        )
        self._score = tf.function(self._find, input_signature=[features, numbers])

    def train(self, batch: Batch) -> Outcome:
        """Takes one step on a batch of at most `settings.batch` examples."""
        if batch.size > self.settings.batch:
            raise ValueError(f"a step takes at most batch={self.settings.batch} examples, given were {batch.size}")
        pi = batch.pi.astype(np.float32)
        judged = batch.labels, np.nan_to_num(batch.values.astype(np.float32)), batch.weights, pi
        logits, value, promoted = self._train(*self._inputs(batch), self._logged(batch), *judged)
        return Outcome(logits.numpy(), float(value), {name: keys.numpy() for name, keys in promoted.items()})

    def score(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Returns the logits float32[n, tasks]. Unknown ids read zeros, as they do in serving."""
        return np.asarray(self._score(*self._inputs(batch)))

    def observe(self, batch: Batch, of: Callable[[dict[str, Any], Any], Any]) -> npt.NDArray[np.float32]:
        """Returns what `of` computes of the pooled rows and the numbers, such as the gates of an MMoE."""
        features, numbers = self._inputs(batch)
        ids, places, _ = self._unique(features)
        return np.asarray(of(self._pooled(self._stored(ids), places, features), tf.convert_to_tensor(numbers)))

    def _inputs(self, batch: Batch) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
        columns: dict[str, Any] = {
            n: (c.values, c.row_splits) if isinstance(c, Ragged) else c
            for n, c in batch.features.items()
            if n in self.model.row_features or n in self.model.logged_features
        }
        numbers = [batch.features[n] for n in self.model.number_features]
        return columns, np.stack(numbers, axis=1) if numbers else np.zeros((batch.size, 0), np.float32)

    def _logged(self, batch: Batch) -> Logged:
        """Draws from the id of an impression whether its logged values are hidden, in all of its records alike."""
        dropout = self.model.dropout
        hidden = draw(batch.impression_id, "logged") < dropout if dropout else np.zeros(batch.size, bool)
        return Logged(batch.position, (~hidden).astype(np.float32))

    def _unique(self, features: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Returns table -> unique ids, feature -> the place of each of its ids among them, table -> their counts."""
        ids, places, sights = {}, {}, {}
        for table in self.declaration.tables:
            mine = [f for f in self.declaration.features if f.table == table]
            flat = [features[f.name][0] if f.kind == "ids" else features[f.name] for f in mine]
            ids[table], where, counts = tf.unique_with_counts(tf.concat(flat, 0))
            sights[table] = tf.cast(counts, tf.int64)
            for f, part in zip(mine, tf.split(where, [tf.size(x) for x in flat], num=len(flat)), strict=True):
                places[f.name] = part
        return ids, places, sights

    def _outputs(self, pooled: dict[str, Any], numbers: Any) -> Any:
        served = {name: pooled[name] for name in self.model.row_features}
        return self.model.outputs(served, numbers, Context(tf.shape(numbers)[0]))

    def _pooled(self, rows: dict[str, Any], places: dict[str, Any], features: dict[str, Any]) -> dict[str, Any]:
        """Returns feature -> pooled rows float32[n, dim], from stored table -> rows float32[ids, dim] of unique ids."""
        joined = {table: self.model.joined(table, rows) for table in self.declaration.tables}
        of_ids = {f.name: tf.gather(joined[f.table], places[f.name]) for f in self.declaration.features if f.table}
        splits = {f.name: features[f.name][1] for f in self.declaration.features if f.kind == "ids"}
        return pooled(of_ids, splits)

    def _stored(self, ids: dict[str, Any]) -> dict[str, Any]:
        """Returns stored table -> rows float32[ids, dim] of the ids of its declared table, zeros where it has none."""
        return {name: self.tables[name].find(ids[table]) for name, table in self._table_of.items()}

    def _looked_up(self, ids: dict[str, Any], sights: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
        """The same after new ids have got their rows, from what was `present` before."""
        rows = {}
        for table, of in ids.items():
            if table in self._tails:
                tail, rows[table] = self._tails[table], present[table]
                rows[tail.name] = tail.lookup(of, sights[table], present[table])
            else:
                rows[table] = self.tables[table].lookup(of, sights[table])
        return rows

    def _find(self, features: dict[str, Any], numbers: Any) -> Any:
        ids, places, _ = self._unique(features)
        return self.model.logits(self._outputs(self._pooled(self._stored(ids), places, features), numbers))

    def _step(
        self, features: dict[str, Any], numbers: Any, logged: Logged, labels: Any, values: Any, weights: Any, pi: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Tests, then trains: the logits are of the state before the step. Unknown ids read zeros, as in serving."""
        ids, places, sights = self._unique(features)
        present = self._stored(ids)
        tested = self.model.logits(self._outputs(self._pooled(present, places, features), numbers))
        rows = self._looked_up(ids, sights, present)
        dense = list(self.weights.values()) if self.settings.dense_rate else []
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*rows.values(), *dense])
            of_features = self._pooled(rows, places, features)
            outputs = self.model.as_logged(self._outputs(of_features, numbers), of_features, logged)
            value = self.model.loss(outputs, labels, weights, pi, self.settings.batch, values)
        zero = tf.UnconnectedGradients.ZERO  # of what travels with the rows and is not learned
        of_rows, of_dense = tape.gradient(value, [list(rows.values()), dense], unconnected_gradients=zero)
        for name, gradient in zip(rows, of_rows, strict=True):
            table, gradients = self._table_of[name], tf.convert_to_tensor(gradient)
            self.tables[name].apply(
                ids[table], counted(gradients, sights[table]) if table in self._tails else gradients
            )
        if dense:
            for name, gradient in zip(self.weights, of_dense, strict=True):
                self._descend(name, gradient)
        promoted = {t.name: t.promote(ids[table], rows[t.name], sights[table]) for table, t in self._tails.items()}
        return tested, value, promoted

    def _descend(self, name: str, gradient: Any) -> None:
        """Takes one step of a dense weight's optimizer."""
        weight, optimizer, _ = self.model.dense[name]
        if isinstance(optimizer, Adagrad):
            # Adagrad (Duchi et al., JMLR 12, 2011): a += g^2; w -= rate * g / sqrt(a + epsilon)
            total = self.slots[name].assign_add(gradient * gradient)
            gradient *= tf.math.rsqrt(total + optimizer.epsilon)
        weight.assign_sub(self.settings.dense_rate * optimizer.learning_rate * gradient)


def _slots(model: Model, name: str) -> tf.Variable:
    weight, optimizer, _ = model.dense[name]
    if isinstance(optimizer, Adagrad):
        return tf.Variable(tf.fill(weight.shape, optimizer.start), trainable=False)
    if isinstance(optimizer, SGD):
        return tf.Variable(tf.zeros([0]), trainable=False)
    raise ValueError(f"model {model.info}: the optimizer of {name} is {optimizer!r}, allowed are Adagrad, SGD")
