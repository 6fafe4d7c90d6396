"""The embedding table: every int64 is a key with a row of its own, weights and optimizer slots side by side.

    table = Table(16, "video", optimizer=Adagrad(0.05), initializer=Normal(0.01))
    rows = table.lookup(ids)                                         # new keys are inserted
    ...                                                              # gradients of the rows, [n, 16]
    table.apply(ids, gradients)                                      # one step; repeated ids are summed
    keys, rows, slots, ticks = table.export_since(last_tick)         # what changed
    keys = table.evict(old_tick)                                     # removes rows that did not change since

All methods work eagerly and inside `tf.function`, from any number of threads. `tf.errors.InvalidArgumentError` names a
wrong argument. `ResourceExhaustedError` reports that memory is exhausted; the table stays whole.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.trackable.resource import TrackableResource

from common.disk import replace
from training.cuckoo.admission import Admission
from training.cuckoo.library import ops
from training.cuckoo.optimizers import Adagrad, Optimizer
from training.cuckoo.segments import Initializer, Normal, Segment

ROWS_PER_SHARD = 16_384
MOST_SHARDS = 16
"""The number of threads that can write at once. Readers take no lock. More shards would begin more pages of 2 MB."""

MANIFEST = "manifest.json"
_LAST_TICK = 2**32 - 1
_numbers = itertools.count()


class Rows(NamedTuple):
    """Whole rows in any order: keys int64[n], rows float32[n, dim], slots float32[n, slot_floats], ticks int64[n]."""

    keys: Any
    rows: Any
    slots: Any
    ticks: Any


class Table(TrackableResource):  # type: ignore[misc]
    """A map from int64 keys to rows: `dim` float32 weights, and beside them `slot_floats` numbers of the optimizers.

    A row has either `dim` weights with one `optimizer` and `initializer`, or segments with their own, for example a
    bias with FTRL beside a vector with Adagrad. A new row is a function of (seed, name, key), whatever the order of
    inserts and the number of threads.

    `admission` decides which unknown ids `lookup` gives a row; without it, all of them.
    `nonfinite`: "refuse" refuses a gradient with NaN or Inf and changes nothing; "zero" reads such numbers as 0.
    `expected_rows` sets the number of shards (1 to 16), not a limit. Tables of one `shared_name` in a process are one
    table, which outlives its Python objects. Without it the table belongs to this object.
    """

    def __init__(
        self,
        segments: int | Sequence[Segment],
        name: str = "table",
        *,
        optimizer: Optimizer | None = None,
        initializer: Initializer | None = None,
        admission: Admission | None = None,
        nonfinite: Literal["refuse", "zero"] = "refuse",
        seed: int = 0,
        expected_rows: int = 1 << 20,
        shared_name: str | None = None,
    ) -> None:
        if isinstance(segments, int):
            segments = [Segment(segments, optimizer or Adagrad(), initializer or Normal())]
        elif optimizer is not None or initializer is not None:
            raise ValueError(f"table {name}: given are segments, whose optimizers and initializers are their own")
        if not segments or expected_rows < 1:
            raise ValueError(
                f"table {name}: {len(segments)} segments, expected_rows={expected_rows}; allowed are 1 or more of both"
            )
        if nonfinite not in ("refuse", "zero"):
            raise ValueError(f"table {name}: nonfinite is {nonfinite!r}, allowed are refuse, zero")
        super().__init__()
        self.name, self.segments = name, tuple(segments)
        self.dim = sum(s.dim for s in segments)
        self.slot_floats = sum(s.slot_floats for s in segments)
        shards = 1
        while shards < MOST_SHARDS and shards * ROWS_PER_SHARD < expected_rows:
            shards *= 2
        admission = admission or Admission()
        self.admission_shape = admission.shape(shards)
        self._settings = {
            "dims": [s.dim for s in segments],
            "optimizers": [s.optimizer.rule for s in segments],
            "settings": [x for s in segments for x in s.optimizer.settings()],
            "initializers": [type(s.initializer).__name__.lower() for s in segments],
            "scales": [s.scale for s in segments],
            "seed": seed ^ zlib.crc32(name.encode()),  # one key in two tables: two vectors
            "shards": shards,
            "admit_after": admission.after,
            "admit_probability": admission.probability,
            "pending_ids": admission.pending,
            "zero_nonfinite": nonfinite == "zero",
            "label": name,
        }
        self._own = shared_name is None
        self._shared_name = shared_name or f"{name}#{next(_numbers)}"
        with tf.init_scope():  # made here, or the first tf.function to use it would make its own
            self._handle = self.resource_handle
            self._rates = tf.constant([s.optimizer.learning_rate for s in segments])  # a list at each call costs 20 us
            self._once = tf.zeros([0], tf.int64)

    def lookup(self, ids: Any, sights: Any = None) -> Any:
        """Returns the rows of ids int64[n], float32[n, dim]. Inserts a new id and stamps it with the present tick.

        An id that is not admitted yet reads zeros. `sights` int64[n] says how often each id was seen; default: once.
        """
        return self._lookup(ids, sights, insert=True)

    def _lookup(self, ids: Any, sights: Any, insert: bool) -> Any:
        sights = self._once if sights is None else _keys(sights)
        return ops().cuckoo_lookup(self.resource_handle, _keys(ids), sights, dim=self.dim, insert=insert)

    def find(self, ids: Any) -> Any:
        """Returns the rows of ids int64[n], float32[n, dim]; zeros for an id without a row. Changes nothing."""
        return self._lookup(ids, None, insert=False)

    def apply(self, ids: Any, gradients: Any, learning_rate: Any = None) -> Any:
        """Takes one step of each segment's optimizer on the rows of ids int64[n] with gradients float32[n, dim].

        The gradients of a repeated id are summed first, so it takes one step. An id without a row is ignored.
        `learning_rate` is one number or tensor, or one a segment (a schedule's value of this step); without it each
        optimizer's own. Returns the number of rows changed, int64.
        """
        rates = self._rates if learning_rate is None else tf.convert_to_tensor(learning_rate, tf.float32)
        if rates.shape.rank == 0:
            rates = tf.fill([len(self.segments)], rates)
        return ops().cuckoo_apply(self.resource_handle, _keys(ids), gradients, rates)

    def import_rows(self, keys: Any, rows: Any, slots: Any, ticks: Any) -> Any:
        """Sets whole rows (shapes as in Rows). The last row of a repeated key wins. The tick moves on to theirs."""
        return ops().cuckoo_import(self.resource_handle, _keys(keys), rows, slots, ticks)

    def export_since(self, tick: Any) -> Rows:
        """Returns the rows that were inserted, applied to or imported with a tick > `tick`; all rows if it is 0."""
        return Rows(*ops().cuckoo_export_since(self.resource_handle, tick))

    def remove(self, keys: Any) -> Any:
        """Removes rows and returns which keys had one, bool[n]. New rows use their memory again."""
        return ops().cuckoo_remove(self.resource_handle, _keys(keys))

    def evict(self, tick: Any) -> Any:
        """Removes rows whose tick is `tick` or before, and returns their keys, int64[n]. Their memory is used again."""
        return ops().cuckoo_evict(self.resource_handle, tick)

    def export_admission(self, tick: Any) -> tuple[Any, Any]:
        """Returns the lines of the admission filter that changed after `tick`: places int64[m], bytes uint8[m, 64]."""
        return ops().cuckoo_export_admission(self.resource_handle, tick)  # type: ignore[no-any-return]

    def import_admission(self, places: Any, lines: Any) -> Any:
        """Sets lines of the admission filter of a table of the same `admission_shape`."""
        return ops().cuckoo_import_admission(self.resource_handle, _keys(places), lines)

    def tick(self) -> Any:
        """Returns the clock that stamps rows, int64. It begins at 1."""
        return ops().cuckoo_tick(self.resource_handle)

    def set_tick(self, tick: Any) -> Any:
        """Moves the clock to `tick`: the present tick or a later one, below 2^32."""
        return ops().cuckoo_set_tick(self.resource_handle, tick)

    def stats(self) -> dict[str, int | float]:
        """Returns rows, places for keys, their ratio, bytes of memory, and the tick. Eager only."""
        size, capacity, used = (int(x) for x in ops().cuckoo_stats(self.resource_handle).numpy())
        return {"size": size, "capacity": capacity, "load": size / capacity, "bytes": used, "tick": int(self.tick())}

    def save(self, folder: str | Path) -> None:
        """Writes the table to a new folder: one file a shard with its index, and the manifest last. Eager only.

        It needs a few MB of memory a thread. Readers continue meanwhile. Each file shows its shard at one moment, for
        which writers wait.
        """
        folder = Path(folder)
        folder.mkdir(parents=True)
        ops().cuckoo_save(self.resource_handle, str(folder))
        if self.admission_shape:
            places, lines = self.export_admission(0)
            np.savez(folder / "admission.npz", places=places, lines=lines)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        described = {"format": 1, "table": self._described(), "files": files}
        replace(folder / MANIFEST, json.dumps(described, indent=1).encode())

    def restore(self, folder: str | Path) -> None:
        """Reads what `save` wrote into this table, which must be empty and have the same segments, seed and shards.

        Raises ValueError if the folder is of another table, `tf.errors.DataLossError` if a file is damaged. The table
        then stays empty. Eager only.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"table {self.name}: {path} is not there: the table in this folder is not whole")
        described = json.loads(path.read_text())["table"]
        if described != self._described():
            differ = [
                f"{k} {described.get(k)!r}, expected {v!r}"
                for k, v in self._described().items()
                if v != described.get(k)
            ]
            raise ValueError(f"table {self.name}: {folder} holds another table: {'; '.join(differ)}")
        ops().cuckoo_restore(self.resource_handle, str(folder))
        if self.admission_shape:
            with np.load(Path(folder) / "admission.npz") as filter:
                self.import_admission(filter["places"], filter["lines"])

    def _described(self) -> dict[str, Any]:
        """Describes what must be equal for one table to read the files of another."""
        settings = {k: self._settings[k] for k in ("seed", "shards")}
        return {"segments": [repr(s) for s in self.segments], "admission": self.admission_shape, **settings}

    def _create_resource(self) -> Any:
        return ops().cuckoo_table(shared_name=self._shared_name, **self._settings)

    def _initialize(self) -> None:
        """Does nothing: a new table is empty."""

    def _serialize_to_tensors(self) -> dict[str, Any]:
        """Returns what tf.train.Checkpoint and tf.saved_model.save write: all rows in one tensor, and the clock."""
        places, lines = self.export_admission(0)
        return {**self.export_since(0)._asdict(), "places": places, "lines": lines, "tick": self.tick()}

    def _restore_from_tensors(self, restored: dict[str, Any]) -> Any:
        """Makes the table what was saved. Rows that are not in the saved table are removed."""
        with tf.control_dependencies([self.evict(_LAST_TICK)]):
            imported = self.import_rows(*(restored[name] for name in Rows._fields))
        places, lines = self.export_admission(0)
        emptied = self.import_admission(places, tf.zeros_like(lines))
        with tf.control_dependencies([emptied] if emptied is not None else []):
            filled = self.import_admission(restored["places"], restored["lines"])
        with tf.control_dependencies([op for op in (imported, filled) if op is not None]):  # eagerly they are None
            return self.set_tick(tf.maximum(self.tick(), restored["tick"]))

    def _destroy_resource(self) -> None:
        if self._own:
            tf.raw_ops.DestroyResourceOp(resource=self.resource_handle, ignore_lookup_error=True)


def _keys(ids: Any) -> Any:
    return tf.convert_to_tensor(ids, tf.int64)
