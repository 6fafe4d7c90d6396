"""The embedding table: every int64 is a key with a row of its own, weights and optimizer slots side by side.

    table = Table(17, name="video", initializer="normal", scale=0.01, zero_prefix=1)
    unique, where = tf.unique(ids)
    rows = table.lookup(unique)                                      # new keys are inserted
    ...                                                              # gradients of the rows, [n, 17]
    table.apply_adagrad(unique, gradients, learning_rate=0.05)
    keys, rows, slots, ticks = table.export_since(last_tick)         # what changed

All methods work eagerly and inside `tf.function`, and may be called from any number of threads. Errors are
`tf.errors.InvalidArgumentError` naming the argument, and `ResourceExhaustedError` where memory ends, which leaves the
table whole.
"""

from __future__ import annotations

import itertools
import zlib
from typing import Any, Literal, NamedTuple

import tensorflow as tf
from tensorflow.python.trackable.resource import TrackableResource

from training.cuckoo.library import ops

ROWS_PER_SHARD = 16_384
"""At a shard of this size growth rebuilds some 300 KB: below a millisecond."""


_numbers = itertools.count()


class Rows(NamedTuple):
    """Whole rows, in no order that means anything: keys int64[n], rows float32[n, dim], slots float32[n, slots * dim],
    ticks int64[n]."""

    keys: Any
    rows: Any
    slots: Any
    ticks: Any


class Table(TrackableResource):  # type: ignore[misc]
    """int64 key -> row of `dim` float32 weights and `slots` optimizer slots of `dim` each.

    A row begins as a function of (seed, name, key), so neither order nor number of threads shows: `initializer` is
    zeros, uniform in [-scale, scale) or normal with standard deviation `scale`; the first `zero_prefix` columns are
    zero (DeepFM's linear weight); slots are `slot_value` (Keras' Adagrad: 0.1).

    `expected_rows` sets the number of shards (1 to 256), not a limit. Tables of one `shared_name` in a process are one
    table, which outlives its Python objects; without it the table is the object's own.
    """

    def __init__(
        self,
        dim: int,
        slots: int = 1,
        name: str = "table",
        *,
        initializer: Literal["zeros", "uniform", "normal"] = "normal",
        scale: float = 0.01,
        zero_prefix: int = 0,
        seed: int = 0,
        slot_value: float = 0.1,
        expected_rows: int = 1 << 20,
        shared_name: str | None = None,
    ) -> None:
        if dim < 1 or slots < 0 or expected_rows < 1:
            raise ValueError(
                f"table {name}: dim={dim}, slots={slots}, expected_rows={expected_rows}; allowed are dim >= 1,"
                " slots >= 0, expected_rows >= 1"
            )
        if initializer not in ("zeros", "uniform", "normal"):
            raise ValueError(f"table {name}: initializer is {initializer!r}, allowed are zeros, uniform, normal")
        if not 0 <= zero_prefix <= dim:
            raise ValueError(f"table {name}: zero_prefix is {zero_prefix}, allowed is 0 to dim ({dim})")
        super().__init__()
        self.dim, self.slots, self.name = dim, slots, name
        shards = 1
        while shards < 256 and shards * ROWS_PER_SHARD < expected_rows:
            shards *= 2
        self._settings = {
            "dim": dim,
            "slots": slots,
            "shards": shards,
            "initializer": initializer,
            "scale": scale,
            "zero_prefix": zero_prefix,
            "seed": seed ^ zlib.crc32(name.encode()),  # one key in two tables: two vectors
            "slot_value": slot_value,
        }
        self._own = shared_name is None
        self._shared_name = shared_name or f"{name}#{next(_numbers)}"
        with tf.init_scope():  # made here, or the first tf.function to use it would make its own
            self._handle = self.resource_handle

    def lookup(self, ids: Any) -> Any:
        """Rows of ids int64[n], float32[n, dim]; a new one is inserted and stamped with the present tick."""
        return ops().cuckoo_lookup(self.resource_handle, _keys(ids), dim=self.dim, insert=True)

    def find(self, ids: Any) -> Any:
        """Rows of ids int64[n], float32[n, dim]; zeros where there is none. Changes nothing."""
        return ops().cuckoo_lookup(self.resource_handle, _keys(ids), dim=self.dim, insert=False)

    def apply_adagrad(self, ids: Any, gradients: Any, learning_rate: Any, epsilon: Any = 1e-7) -> Any:
        """One step of Keras' Adagrad on the rows of unique ids int64[n] with gradients float32[n, dim].

        a += g^2; w -= learning_rate * g / sqrt(a + epsilon)   (Duchi et al., JMLR 12, 2011)

        Sum the gradients of a repeated id first: given twice it takes two steps. An id without a row is passed over.
        Returns the number of rows changed, int64.
        """
        return ops().cuckoo_apply_adagrad(self.resource_handle, _keys(ids), gradients, learning_rate, epsilon)

    def import_rows(self, keys: Any, rows: Any, slots: Any, ticks: Any) -> Any:
        """Sets whole rows (shapes as in Rows); of a repeated key the last one stands. The tick moves on to theirs."""
        return ops().cuckoo_import(self.resource_handle, _keys(keys), rows, slots, ticks)

    def export_since(self, tick: Any) -> Rows:
        """Rows inserted, applied to or imported with a tick > `tick`; all rows if it is 0."""
        return Rows(*ops().cuckoo_export_since(self.resource_handle, tick))

    def remove(self, keys: Any) -> Any:
        """Takes rows out, bool[n]: which keys had one. Their memory is used again."""
        return ops().cuckoo_remove(self.resource_handle, _keys(keys))

    def tick(self) -> Any:
        """The clock that stamps rows, int64; it begins at 1."""
        return ops().cuckoo_tick(self.resource_handle)

    def set_tick(self, tick: Any) -> Any:
        """Moves the clock to `tick`, which is the present one or a later one, below 2^32."""
        return ops().cuckoo_set_tick(self.resource_handle, tick)

    def stats(self) -> dict[str, int | float]:
        """Rows, places for keys, their ratio, bytes of memory, tick. Eager only."""
        size, capacity, used = (int(x) for x in ops().cuckoo_stats(self.resource_handle).numpy())
        return {"size": size, "capacity": capacity, "load": size / capacity, "bytes": used, "tick": int(self.tick())}

    def _create_resource(self) -> Any:
        return ops().cuckoo_table(shared_name=self._shared_name, **self._settings)

    def _initialize(self) -> None:
        """A new table is empty: there is nothing to run."""

    def _destroy_resource(self) -> None:
        if self._own:
            tf.raw_ops.DestroyResourceOp(resource=self.resource_handle, ignore_lookup_error=True)


def _keys(ids: Any) -> Any:
    return tf.convert_to_tensor(ids, tf.int64)
