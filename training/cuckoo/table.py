"""The embedding table: every int64 is a key with a row of its own, weights and optimizer slots side by side.

    table = Table(16, "video", optimizer=Adagrad(0.05), initializer=Normal(0.01))
    rows = table.lookup(ids)                                         # new keys are inserted
    ...                                                              # gradients of the rows, [n, 16]
    table.apply(ids, gradients)                                      # one step; repeated ids are summed
    keys, rows, slots, ticks = table.export_since(last_tick)         # what changed
    gone = table.evict(old_tick)                                     # what did not change for long

All methods work eagerly and inside `tf.function`, and may be called from any number of threads. Errors are
`tf.errors.InvalidArgumentError` naming the argument, and `ResourceExhaustedError` where memory ends, which leaves the
table whole.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.trackable.resource import TrackableResource

from training.cuckoo.admission import Admission
from training.cuckoo.library import ops
from training.cuckoo.optimizers import Adagrad, Optimizer
from training.cuckoo.segments import Initializer, Normal, Segment

ROWS_PER_SHARD = 16_384
MOST_SHARDS = 16
"""So many threads write side by side; readers take no lock. More would begin more pages of 2 MB."""

MANIFEST = "manifest.json"
_LAST_TICK = 2**32 - 1
_numbers = itertools.count()


class Rows(NamedTuple):
    """Whole rows, in no order that means anything: keys int64[n], rows float32[n, dim], slots float32[n, slot_floats],
    ticks int64[n]."""

    keys: Any
    rows: Any
    slots: Any
    ticks: Any


class Table(TrackableResource):  # type: ignore[misc]
    """int64 key -> row of `dim` float32 weights, and beside them what their optimizers keep (`slot_floats` numbers).

    Either `dim` weights with one `optimizer` and `initializer`, or a list of segments with their own: a bias with FTRL
    beside a vector with Adagrad. A new row is a function of (seed, name, key): neither order nor number of threads
    shows.

    `admission`: which unknown ids `lookup` gives a row; without it all.
    `nonfinite`: gradients with NaN or Inf are refused with nothing changed, or "zero": such numbers read 0.
    `expected_rows` sets the number of shards (1 to 16), not a limit. Tables of one `shared_name` in a process are one
    table, which outlives its Python objects; without it the table is the object's own.
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
        """Rows of ids int64[n], float32[n, dim]; a new one is inserted and stamped with the present tick.

        One that is not admitted yet reads zeros. `sights` int64[n]: how often each id was seen, without it once.
        """
        return self._lookup(ids, sights, insert=True)

    def _lookup(self, ids: Any, sights: Any, insert: bool) -> Any:
        sights = self._once if sights is None else _keys(sights)
        return ops().cuckoo_lookup(self.resource_handle, _keys(ids), sights, dim=self.dim, insert=insert)

    def find(self, ids: Any) -> Any:
        """Rows of ids int64[n], float32[n, dim]; zeros where there is none. Changes nothing."""
        return self._lookup(ids, None, insert=False)

    def apply(self, ids: Any, gradients: Any, learning_rate: Any = None) -> Any:
        """One step of each segment's optimizer on the rows of ids int64[n] with gradients float32[n, dim].

        The gradients of a repeated id are summed first: it takes one step. An id without a row is passed over.
        `learning_rate` is one number or tensor, or one a segment (a schedule's value of this step); without it each
        optimizer's own. Returns the number of rows changed, int64.
        """
        rates = self._rates if learning_rate is None else tf.convert_to_tensor(learning_rate, tf.float32)
        if rates.shape.rank == 0:
            rates = tf.fill([len(self.segments)], rates)
        return ops().cuckoo_apply(self.resource_handle, _keys(ids), gradients, rates)

    def import_rows(self, keys: Any, rows: Any, slots: Any, ticks: Any) -> Any:
        """Sets whole rows (shapes as in Rows); of a repeated key the last one stands. The tick moves on to theirs."""
        return ops().cuckoo_import(self.resource_handle, _keys(keys), rows, slots, ticks)

    def export_since(self, tick: Any) -> Rows:
        """Rows inserted, applied to or imported with a tick > `tick`; all rows if it is 0."""
        return Rows(*ops().cuckoo_export_since(self.resource_handle, tick))

    def remove(self, keys: Any) -> Any:
        """Takes rows out, bool[n]: which keys had one. Their memory is used again."""
        return ops().cuckoo_remove(self.resource_handle, _keys(keys))

    def evict(self, tick: Any) -> Any:
        """Takes out the rows whose tick is `tick` or before: their keys, int64[n]. Their memory is used again."""
        return ops().cuckoo_evict(self.resource_handle, tick)

    def export_admission(self, tick: Any) -> tuple[Any, Any]:
        """Lines of the admission filter that changed after `tick`: their places int64[m], their bytes uint8[m, 64]."""
        return ops().cuckoo_export_admission(self.resource_handle, tick)  # type: ignore[no-any-return]

    def import_admission(self, places: Any, lines: Any) -> Any:
        """Sets lines of the admission filter of a table of the same `admission_shape`."""
        return ops().cuckoo_import_admission(self.resource_handle, _keys(places), lines)

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

    def save(self, folder: str | Path) -> None:
        """Writes the table to a new folder: a file a shard, its index with it, and a manifest last. Eager only.

        Memory: a few MB a thread. Rows may be read meanwhile; each shard is of one moment, which writers wait for.
        """
        folder = Path(folder)
        folder.mkdir(parents=True)
        ops().cuckoo_save(self.resource_handle, str(folder))
        if self.admission_shape:
            places, lines = self.export_admission(0)
            np.savez(folder / "admission.npz", places=places, lines=lines)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        part = folder / f"{MANIFEST}.part"
        part.write_text(json.dumps({"format": 1, "table": self._described(), "files": files}, indent=1))
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(folder / MANIFEST)

    def restore(self, folder: str | Path) -> None:
        """Reads what `save` wrote into this table, which is empty and has the same segments, seed and shards.

        ValueError where the folder is of another table, `tf.errors.DataLossError` where a file is damaged: the table is
        empty still. Eager only.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"table {self.name}: {path} is not there: the table in this folder is not whole")
        found = json.loads(path.read_text())["table"]
        if found != self._described():
            differ = [
                f"{k} {found.get(k)!r}, expected {v!r}" for k, v in self._described().items() if v != found.get(k)
            ]
            raise ValueError(f"table {self.name}: {folder} holds another table: {'; '.join(differ)}")
        ops().cuckoo_restore(self.resource_handle, str(folder))
        if self.admission_shape:
            with np.load(Path(folder) / "admission.npz") as filter:
                self.import_admission(filter["places"], filter["lines"])

    def _described(self) -> dict[str, Any]:
        """What must be equal for one table's files to be another's."""
        kept = {k: self._settings[k] for k in ("seed", "shards")}
        return {"segments": [repr(s) for s in self.segments], "admission": self.admission_shape, **kept}

    def _create_resource(self) -> Any:
        return ops().cuckoo_table(shared_name=self._shared_name, **self._settings)

    def _initialize(self) -> None:
        """A new table is empty: there is nothing to run."""

    def _serialize_to_tensors(self) -> dict[str, Any]:
        """What tf.train.Checkpoint and tf.saved_model.save write: all rows in one tensor, and the clock."""
        places, lines = self.export_admission(0)
        return {**self.export_since(0)._asdict(), "places": places, "lines": lines, "tick": self.tick()}

    def _restore_from_tensors(self, restored: dict[str, Any]) -> Any:
        """The table becomes what was saved: rows that it has beside go."""
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
