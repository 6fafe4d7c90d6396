"""One step of training: ids to rows, the model, the loss, Adagrad on the rows and on the dense weights.

    learner = Learner(declaration, Settings())
    outcome = learner.train(batch)  # logits before the step: float32[n, tasks], and the loss
    logits = learner.score(batch)  # changes nothing

Ids are made unique a table (features may share one), so a row that many examples use takes one step with the sum of
its gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from streaming.declaration import Declaration, Policy
from streaming.example import Batch, Ragged
from training.cuckoo import Adagrad, Admission, Normal, Segment, Table, Zeros
from training.models.deepfm import Ranker, loss


@dataclass(frozen=True)
class Settings:
    """How it learns. `batch` is the constant B of the loss and the most examples a step takes.

    `row_start` and `dense_start` are Adagrad's first accumulators. Gradients carry the 1 / B of the loss, so they are
    about 0.1 / B^2 for a row, which few examples of a batch touch.
    """

    batch: int = 512
    row_rate: float = 0.05
    row_start: float = 1e-7
    row_scale: float = 0.02
    dense_rate: float = 0.05
    dense_start: float = 1e-6
    seed: int = 0


class Outcome(NamedTuple):
    """Of one step, before it changed anything: float32[n, tasks] logits, and the loss."""

    logits: npt.NDArray[np.float32]
    loss: float


class Learner:
    """The tables, the ranker and its optimizer: what a step changes."""

    def __init__(self, declaration: Declaration, settings: Settings | None = None) -> None:
        self.declaration = declaration
        self.settings = s = settings or Settings()
        adagrad = Adagrad(s.row_rate, start=s.row_start)
        segments = [Segment(1, adagrad, Zeros()), Segment(declaration.row_dim - 1, adagrad, Normal(s.row_scale))]
        self.tables = {
            name: Table(segments, name, admission=_admission(declaration.policy(name)), seed=s.seed)
            for name in declaration.tables
        }
        self.ranker = Ranker(declaration, seed=s.seed)
        self.weights = self.ranker.dense_weights()
        self.accumulators = {
            name: tf.Variable(tf.fill(w.shape, s.dense_start), trainable=False) for name, w in self.weights.items()
        }
        # Ids of any number, examples of any number: one trace.
        features = {
            f.name: (tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.int64))
            if f.kind == "ids"
            else tf.TensorSpec([None], tf.int64)
            for f in declaration.features
            if f.table
        }
        numbers = tf.TensorSpec([None, len(self.ranker.numbers)], tf.float32)
        matrix = tf.TensorSpec([None, len(declaration.tasks)], tf.float32)
        self._train = tf.function(
            self._step, input_signature=[features, numbers, matrix, matrix, tf.TensorSpec([None], tf.float32)]
        )
        self._score = tf.function(self._find, input_signature=[features, numbers])

    def train(self, batch: Batch) -> Outcome:
        """One step on a batch of at most `settings.batch` examples."""
        if batch.size > self.settings.batch:
            raise ValueError(f"a step takes at most batch={self.settings.batch} examples, given were {batch.size}")
        pi = batch.pi.astype(np.float32)
        logits, value = self._train(*self._inputs(batch), batch.labels, batch.weights, pi)
        return Outcome(logits.numpy(), float(value))

    def score(self, batch: Batch) -> npt.NDArray[np.float32]:
        """float32[n, tasks] logits; unknown ids read zeros, as they do in serving."""
        return np.asarray(self._score(*self._inputs(batch)))

    def _inputs(self, batch: Batch) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
        columns: dict[str, Any] = {
            n: (c.values, c.row_splits) if isinstance(c, Ragged) else c
            for n, c in batch.features.items()
            if n in self.ranker.rows_of
        }
        numbers = [batch.features[n] for n in self.ranker.numbers]
        return columns, np.stack(numbers, axis=1) if numbers else np.zeros((batch.size, 0), np.float32)

    def _unique(self, features: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Table -> its unique ids; feature -> where each of its ids is among them; table -> how often each is there."""
        ids, places, sights = {}, {}, {}
        for table in self.tables:
            mine = [f for f in self.declaration.features if f.table == table]
            flat = [features[f.name][0] if f.kind == "ids" else features[f.name] for f in mine]
            ids[table], where, counts = tf.unique_with_counts(tf.concat(flat, 0))
            sights[table] = tf.cast(counts, tf.int64)
            for f, part in zip(mine, tf.split(where, [tf.size(x) for x in flat], num=len(flat)), strict=True):
                places[f.name] = part
        return ids, places, sights

    def _gather(self, rows: dict[str, Any], places: dict[str, Any], features: dict[str, Any]) -> dict[str, Any]:
        """Feature -> float32[n, row_dim]: its row, or the mean of its rows (no rows: zeros)."""
        gathered = {}
        for f in self.declaration.features:
            if f.table:
                found = tf.gather(rows[f.table], places[f.name])
                if f.kind == "ids":
                    splits = features[f.name][1]
                    counts = splits[1:] - splits[:-1]
                    owner = tf.repeat(tf.range(tf.size(counts)), counts)
                    sums = tf.math.unsorted_segment_sum(found, owner, tf.size(counts))
                    found = sums / tf.cast(tf.maximum(counts, 1), tf.float32)[:, None]
                gathered[f.name] = found
        return gathered

    def _find(self, features: dict[str, Any], numbers: Any) -> Any:
        ids, places, _ = self._unique(features)
        rows = {name: table.find(ids[name]) for name, table in self.tables.items()}
        return self.ranker.logits(self._gather(rows, places, features), numbers)

    def _step(self, features: dict[str, Any], numbers: Any, labels: Any, weights: Any, pi: Any) -> tuple[Any, Any]:
        """The logits are of the state before the step (test, then train): unknown ids read zeros, as in serving."""
        ids, places, sights = self._unique(features)
        known = {name: table.find(ids[name]) for name, table in self.tables.items()}
        tested = self.ranker.logits(self._gather(known, places, features), numbers)
        rows = {name: table.lookup(ids[name], sights[name]) for name, table in self.tables.items()}
        dense = list(self.weights.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*rows.values(), *dense])
            logits = self.ranker.logits(self._gather(rows, places, features), numbers)
            value = loss(logits, labels, weights, pi, self.settings.batch)
        of_rows, of_dense = tape.gradient(value, [list(rows.values()), dense])
        for (name, table), gradient in zip(self.tables.items(), of_rows, strict=True):
            table.apply(ids[name], tf.convert_to_tensor(gradient))
        for (name, weight), gradient in zip(self.weights.items(), of_dense, strict=True):
            # Adagrad (Duchi et al., JMLR 12, 2011): a += g^2; w -= rate * g / sqrt(a)
            total = self.accumulators[name].assign_add(gradient * gradient)
            weight.assign_sub(self.settings.dense_rate * gradient * tf.math.rsqrt(total))
        return tested, value


def _admission(policy: Policy) -> Admission:
    return Admission(policy.admit_after, policy.admit_probability, policy.pending_ids)
