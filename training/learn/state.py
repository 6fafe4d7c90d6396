"""The state of training, and how it is committed and restored (docs/delta.md).

state = State(learner, source)
state.restore(log, lineage)             # the newest whole chain
state.learn(batch)                      # steps; counts what was learned
cut = state.cut(positions)              # between two steps: copied, the tables' clock moves on
manifest = writer.delta(cut)            # any thread
state.expire()                          # in the background; the next cut has the removed keys
state.committed(cut)                    # only now its rows are clean; or state.failed(cut)
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from common import process
from delta_log.files import Filter, Float32s, TableRows, Weight
from delta_log.fold import PRECISION, dense_weights, merged, thinned, tick_times
from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from delta_log.writer import Cut
from streaming.declaration import Declaration
from streaming.example import Batch, concat
from streaming.hashing import fnv1a64, learned_sum
from training.learn.dense import DenseSync
from training.learn.expiry import Expiry
from training.learn.learner import Learner
from training.learn.metrics import Tested
from training.models.model import make

SCORED_AT_ONCE = 8192
"""Examples scored in one call. All their rows are in memory."""
OBSERVED = 4096
"""What a model observes is the mean over the newest examples of a delta, about so many."""
_MASK = 2**64 - 1

logger = process.logger("training.learn.state")


class State:
    """The tables, the dense weights with their slots, the count and sum of what was learned, and its event time.

    Replicas get the dense weights with each `dense_every`-th delta. Only one cut may be pending: `committed` or
    `failed` must follow each `cut`.
    """

    def __init__(self, learner: Learner, source: str, dense_every: int = 1) -> None:
        self.learner, self.source = learner, source
        self.declaration = learner.declaration
        self._dense = DenseSync(learner, dense_every)
        self.positions: dict[str, Any] = {}
        self.learned = (0, 0)
        self.learned_until_ms = -1
        self.newest_event_ms = -1
        stored = learner.model.stored
        expire_ms = {
            name: p.expire_ms for p in self.declaration.policies if p.expire_ms is not None for name in stored[p.table]
        }
        self.expiry = Expiry(learner.tables, expire_ms)
        self._expires, self._tick_ms = bool(expire_ms), min(expire_ms.values(), default=0) // PRECISION
        self._ticked_ms = -1  # the event time at which the last tick ended
        self.counts_freshness = True
        """False while it catches up: the served lineage has learned the same examples."""
        self._clean_tick = 0  # rows stamped later are in no manifest yet
        self._pending: Cut | None = None
        self._begin()

    def _begin(self) -> None:
        """Sets the counts from cut to cut to zero."""
        self.examples = 0
        self.tested = Tested(self.declaration)
        self._written: dict[str, Counter[int]] = {"positive": Counter(), "negative": Counter()}
        self._newest: deque[Batch] = deque(maxlen=max(1, OBSERVED // self.learner.settings.batch))

    def learn(self, batch: Batch) -> None:
        """Takes steps over a batch of any size, in its order."""
        for start in range(0, batch.size, self.learner.settings.batch):
            part = batch.slice(start, start + self.learner.settings.batch)
            outcome = self.learner.train(part)
            self.tested.add(part, outcome.logits)
            for name, keys in outcome.promoted.items():
                self.expiry.left(name, keys)
            self._count(part)
            if self.learner.model.observed:
                self._newest.append(part)
            self.newest_event_ms = max(self.newest_event_ms, int(part.event_ms.max()))
            if self._expires and self.newest_event_ms - self._ticked_ms >= self._tick_ms:
                self._end_tick(self.newest_event_ms)

    def _end_tick(self, event_ms: int) -> int:
        """Moves the tables' clock on. Rows that were learned in the tick that ends, which is returned, have one age.

        So the ticks of expiring tables end at least each `expire_ms` / PRECISION of event time. Days that are learned
        at once then leave one by one, as they came.
        """
        tick = self.tick()
        self.expiry.ended(tick, event_ms)
        self._ticked_ms = event_ms
        for table in self.learner.tables.values():
            table.set_tick(tick + 1)
        return tick

    def _count(self, batch: Batch) -> None:
        rows, tasks = np.nonzero(batch.weights > 0)
        added = learned_sum(fnv1a64(batch.impression_id)[rows], tasks, batch.labels[rows, tasks])
        self.learned = self.learned[0] + len(rows), (self.learned[1] + added) & _MASK
        self.examples += batch.size
        for kind, bins in self._written.items() if self.counts_freshness else ():
            times, counts = np.unique(batch.written_ms[batch.kind == kind] // 10 * 10, return_counts=True)
            bins.update(dict(zip(times.tolist(), counts.tolist(), strict=True)))

    def cut(self, positions: Mapping[str, Any], *, whole: bool = False, digest: bool = False) -> Cut:
        """Copies what changed since the last committed cut (`whole`: everything), and moves the tables' clock on."""
        if self._pending is not None:
            raise RuntimeError("a cut while the one before is neither committed nor failed")
        started = time.monotonic()
        if whole:  # a base has no row that is due
            self.expiry.begin(self.newest_event_ms if self.learned_until_ms < 0 else self.learned_until_ms)
        self.expiry.end()
        self.positions = dict(positions)
        tables, totals = {}, {}
        since, tick = 0 if whole else self._clean_tick, self._end_tick(max(self.learned_until_ms, self.newest_event_ms))
        for name, table in self.learner.tables.items():
            # asarray shares the tensor's memory, numpy() would copy the delta once more
            keys, rows, slots, ticks = map(np.asarray, table.export_since(since))
            removed = keys[:0] if whole else self.expiry.removed(name, keys)
            places, lines = map(np.asarray, table.export_admission(since))
            admission = Filter(table.admission_shape, places.astype(np.uint32), lines)
            tables[name] = TableRows(keys, rows, slots, ticks.astype(np.uint32), removed, admission)
            totals[name] = int(table.stats()["size"])
        dense = self._dense.cut(whole)
        export_ms = round((time.monotonic() - started) * 1000, 3)
        self._pending = Cut(
            source=self.source,
            declaration=self.declaration.sha256,
            model=self.learner.model.info,
            tables=tables,
            dense=dense.weights,
            serves_dense=dense.serves,
            totals=totals,
            tick=tick,
            tick_times={t: ms for t, ms in self.expiry.tick_times.items() if t > since},
            positions=self.positions,
            learned=self.learned,
            learned_until_ms=self.learned_until_ms,
            written_ms={kind: dict(bins) for kind, bins in self._written.items()} if not whole else {},
            digest=self.digest(dense.served) if digest else {},
            metrics={"examples": self.examples, **self.tested.figures(), **self._observed(), "export_ms": export_ms},
        )
        self._counted, self._dense_cut = (self.examples, self._written), dense
        self._removed = dict(self.expiry.tombstones)
        self._begin()
        return self._pending

    def _observed(self) -> dict[str, float]:
        """The means of what the model observes; nothing without an example."""
        if not self._newest:
            return {}
        model = self.learner.model
        means = self.learner.observe(concat(list(self._newest)), model.observe).mean(0)
        return dict(zip(model.observed, means.tolist(), strict=True))

    def committed(self, cut: Cut) -> None:
        """Marks the rows of `cut` as clean, because its manifest exists."""
        self._settle(cut)
        self._clean_tick = cut.tick
        self._dense.committed(self._dense_cut)
        self.expiry.committed(self._removed)

    def failed(self, cut: Cut) -> None:
        """Keeps the rows of `cut` dirty, because its manifest does not exist. The next cut has its counts, too."""
        self._settle(cut)
        examples, written = self._counted
        self.examples += examples
        for kind, bins in written.items():
            self._written[kind].update(bins)

    def expire(self) -> None:
        """Begins to remove, in the background, the rows that are due. The next cut has their keys."""
        self.expiry.begin(self.learned_until_ms)

    def _settle(self, cut: Cut) -> None:
        if cut is not self._pending:
            raise RuntimeError("this cut is not the pending one")
        self._pending = None

    def tick(self) -> int:
        """Returns the tables' clock. All of them are at the same tick."""
        return max(int(table.tick()) for table in self.learner.tables.values())

    def digest(self, dense: Mapping[str, Float32s] | None = None) -> dict[str, int]:
        """Returns table -> int64 sum modulo 2^64 of farmhash64(key bytes + row bytes); `dense`: of name + value.

        That is of the weights `dense`, by default those of training.
        """
        digests = {}
        for name, table in self.learner.tables.items():
            whole = table.export_since(0)
            digests[name] = rows_digest(np.asarray(whole.keys), np.asarray(whole.rows))
        if dense is None:
            dense = {name: weight.numpy() for name, weight in self.learner.weights.items()}
        return {**digests, "dense": dense_digest(dense)}

    def restore(self, log: Log, lineage: str, base_seq: int | None = None) -> Manifest:
        """Loads the newest chain of a lineage, or only its base `base_seq`, into a new learner.

        Returns the newest manifest of it. Raises LogError if it is of another declaration or model.
        """
        # The base alone: the deltas after it may be broken, and then it is the way out.
        base, deltas = log.chain(lineage) if base_seq is None else (log.manifest(lineage, "base", base_seq), [])
        last = deltas[-1] if deltas else base
        weights, served = dense_weights(base, deltas)
        self.check_origin(last, weights)
        self.take_over(base, deltas, merged(base, deltas), weights)
        self._dense.restored(weights, served, last.seq - last.dense_seq)
        return last

    def take_over(
        self, base: Manifest, deltas: list[Manifest], tables: Mapping[str, TableRows], dense: Mapping[str, Weight]
    ) -> None:
        """Loads tables and dense weights, and continues at the positions and with the counts of a chain."""
        last = deltas[-1] if deltas else base
        for name, rows in tables.items():
            table = self.learner.tables[name]
            table.import_rows(rows.keys, rows.rows, rows.slots, rows.ticks.astype(np.int64))
            if rows.admission.shape == table.admission_shape:
                table.import_admission(rows.admission.places.astype(np.int64), rows.admission.lines)
            else:
                before, now = rows.admission.shape or "none", table.admission_shape or "none"
                logger.info("table %s: admission was %s in %s, is %s: it begins anew", name, before, last.name, now)
        for table in self.learner.tables.values():
            table.set_tick(last.tick + 1)
        for name, weight in dense.items():
            self.learner.weights[name].assign(weight.value)
            self.learner.slots[name].assign(weight.slots.reshape(self.learner.slots[name].shape))
        self.positions = last.positions
        self.learned = int(last.learned["count"]), int(last.learned["sum"])
        self.learned_until_ms, self._clean_tick = last.learned_until_ms, last.tick
        self.expiry.tick_times = thinned(tick_times([base, *deltas]))
        self.newest_event_ms = self._ticked_ms = max(self.expiry.tick_times.values(), default=-1)

    def check_origin(self, manifest: Manifest, weights: Mapping[str, Weight]) -> None:
        """Raises LogError unless the state of `manifest`, with its dense weights, is of this declaration and model."""
        begin = "begin a new lineage (python -m training.learn.batch_pass)"
        if manifest.declaration != self.declaration.sha256:
            raise LogError(
                f"{manifest.folder}: declaration is {manifest.declaration[:12]} of source {manifest.source}, the"
                f" trainer's is {self.declaration.sha256[:12]} of {self.source}: {begin}"
            )
        model = self.learner.model
        tables = {name: (t.dim, t.slot_floats) for name, t in self.learner.tables.items()}
        dense = [(name, tuple(weight.shape)) for name, weight in self.learner.weights.items()]
        if (
            manifest.model.name != model.info.name
            or tables != {name: (info.dim, info.slots) for name, info in manifest.tables.items()}
            or dense != [(name, weight.value.shape) for name, weight in weights.items()]
        ):
            raise LogError(f"{manifest.folder}: model is {manifest.model}, the trainer's is {model.info}: {begin}")
        if manifest.model != model.info:
            logger.info("%s: model was %s, is %s from here on", manifest.name, manifest.model, model.info)


def score_with(base: Manifest, examples: Batch, declaration: Declaration, source: str) -> npt.NDArray[np.float32]:
    """Returns the logits that a base gives, without its deltas: float32[n, tasks]; unknown ids read zeros."""
    learner = Learner(make(base.model, declaration))
    State(learner, source).restore(Log(base.folder.parents[1]), base.lineage, base.seq)
    return scores_of(learner, examples)


def scores_of(learner: Learner, examples: Batch) -> npt.NDArray[np.float32]:
    """Returns the logits of any number of examples: float32[n, tasks]."""
    parts = [learner.score(examples.slice(at, at + SCORED_AT_ONCE)) for at in range(0, examples.size, SCORED_AT_ONCE)]
    return np.concatenate([np.zeros((0, len(learner.declaration.tasks)), np.float32), *parts])


def rows_digest(keys: Any, rows: Any) -> int:
    """Returns the sum modulo 2^64 of farmhash64(key bytes + row bytes). The order of rows does not matter."""
    if not len(keys):
        return 0
    both = np.concatenate([keys.view(np.uint8).reshape(-1, 8), rows.view(np.uint8).reshape(len(keys), -1)], axis=1)
    return _sum(tf.fingerprint(both).numpy())


def dense_digest(weights: Mapping[str, Any]) -> int:
    """Returns the sum modulo 2^64 of farmhash64(name + value bytes) of the dense weights."""
    prints = [
        tf.fingerprint(np.frombuffer(name.encode() + np.ascontiguousarray(value).tobytes(), np.uint8)[None]).numpy()
        for name, value in weights.items()
    ]
    return _sum(np.concatenate(prints)) if prints else 0


def _sum(prints: Any) -> int:
    return int(np.ascontiguousarray(prints).view(np.int64).sum(dtype=np.int64))  # wraps around
