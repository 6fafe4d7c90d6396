"""The rare ids of a table in training: counted, and moved to a long row when they have become frequent.

An id has its row in the tail or in the table itself, never in both. The state is in the rows alone: a row's last number
is the count of its sights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from training.cuckoo import Table
from training.models.model import Model


class TailTable:
    """The tail of the declared table `table`. All methods are for the unique ids int64[n] of a step."""

    def __init__(self, model: Model, table: str, tables: Mapping[str, Table]) -> None:
        self._model, self._table, self._after = model, table, model.tails[table].after
        self.name = model.tails[table].table
        self._long, self._short = tables[table], tables[self.name]
        self._slots = np.concatenate([segment.first_slots() for segment in self._long.segments])

    def lookup(self, ids: Any, sights: Any, long: Any) -> Any:
        """Returns the short rows float32[n, dim], zeros for an id that has a row in `long`. Inserts the other ids."""
        rare = tf.where(long[:, -1] == 0)[:, 0]
        rows = self._short.lookup(tf.gather(ids, rare), tf.gather(sights, rare))
        return tf.scatter_nd(rare[:, None], rows, tf.stack([tf.size(ids, tf.int64), self._short.dim]))

    def promote(self, ids: Any, short: Any, sights: Any) -> Any:
        """Moves the ids whose count has reached the limit, after a step that began with the rows `short`.

        Returns their keys int64[m]. The optimizers of the long rows begin anew.
        """
        seen = short[:, -1] + tf.cast(sights, tf.float32)
        keys = tf.boolean_mask(ids, seen >= self._after)
        rows = self._short.find(keys)  # zeros for an id of the table itself, or one that is not admitted
        frequent = rows[:, -1] >= self._after
        keys, rows = tf.boolean_mask(keys, frequent), tf.boolean_mask(rows, frequent)
        n = tf.size(keys)
        none = tf.zeros([n, self._long.dim])
        long = tf.concat([self._model.joined(self._table, {self.name: rows, self._table: none}), rows[:, -1:]], 1)
        slots = tf.tile(self._slots[None], [n, 1])
        self._long.import_rows(keys, long, slots, tf.fill([n], self._long.tick()))
        self._short.remove(keys)
        return keys


def counted(gradients: Any, sights: Any) -> Any:
    """Returns the gradients of rows whose last number counts their sights."""
    return tf.concat([gradients[:, :-1], -tf.cast(sights, tf.float32)[:, None]], 1)
