"""A lineage of random changes, with plain dicts beside it: what a delta log must hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from delta_log.files import Filter, TableRows, Weight, read_admission, read_removed, read_rows, read_slots
from delta_log.log import Log
from delta_log.manifest import Manifest, ModelInfo
from delta_log.writer import Cut, Writer

MODEL = ModelInfo("deepfm", {"dim": 3})
DIMS = {"user": (3, 3), "item": (5, 10)}
State = dict[str, dict[int, tuple[list[float], list[float], int]]]


class Oracle:
    """Two tables as plain dicts, changed at random. "lines" are the lines of the admission filter of `item`.

    `dense` are the dense weights of training, `served` those that are served. Deltas in turn have none (seq 1), have
    some that are not served yet (2), and serve theirs (3). At the fifth tick the filter's shape changes, and it begins
    empty.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tables: State = {name: {} for name in [*DIMS, "lines"]}
        self.dense = {"w": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32)}
        self.served = self.dense
        self.tick = 0

    def change(self, rows: int = 40) -> Cut:
        """Writes some rows, removes some, and returns the cut of that."""
        self.tick += 1
        tables = {}
        for name, (dim, slots) in DIMS.items():
            table = self.tables[name]
            keys = np.unique(self.rng.integers(-60, 60, rows)) * (2**62 // 60)
            gone = np.array([k for k in table if k not in keys.tolist() and self.rng.random() < 0.2], np.int64)
            values = self.rng.normal(size=(len(keys), dim)).astype(np.float32)
            state = self.rng.normal(size=(len(keys), slots)).astype(np.float32)
            for key, value, slot in zip(keys.tolist(), values.tolist(), state.tolist(), strict=True):
                table[key] = value, slot, self.tick
            for key in gone.tolist():
                del table[key]
            tables[name] = TableRows(keys, values, state, np.full(len(keys), self.tick, np.uint32), gone)
        tables["item"] = tables["item"]._replace(admission=self._see())
        serves, held = self.tick % 3 == 1, self.tick % 3 == 2
        if not held:
            self.dense = {n: self.rng.normal(size=w.shape).astype(np.float32) for n, w in self.dense.items()}
        self.served = self.dense if serves else self.served
        dense = {} if held else {n: Weight(w, np.repeat(w.ravel(), 2)) for n, w in self.dense.items()}
        totals = {name: len(self.tables[name]) for name in DIMS}
        return Cut(
            source="simulator",
            declaration="d" * 64,
            model=MODEL,
            tables=tables,
            dense=dense,
            totals=totals,
            tick=self.tick,
            serves_dense=serves,
            tick_times={self.tick: 1000 * self.tick},
            positions={"cluster": "c", "topic": "examples", "topic_id": "t", "offsets": {"0": 10 * self.tick}},
            learned=(self.tick, 2**64 - self.tick),
            learned_until_ms=500 * self.tick,
            written_ms={"positive": {10: 3}, "negative": {}},
            metrics={"auc": 0.5 + self.tick / 100, "gate_click_expert0": 0.25},
        )

    def _see(self) -> Filter:
        """Changes some lines of the filter."""
        if self.tick == 5:
            self.tables["lines"] = {}
        places = np.sort(self.rng.choice(64, 9, replace=False)).astype(np.uint32)
        lines = self.rng.integers(0, 256, (9, 64)).astype(np.uint8)
        self.tables["lines"].update(as_lines(places, lines))
        return Filter("count 1x512" if self.tick < 5 else "count 2x512", places, lines)

    def whole(self) -> Cut:
        """Returns the cut of a base, with every row."""
        cut = self.change()
        tables = {}
        for name, (dim, slots) in DIMS.items():
            table = self.tables[name]
            tables[name] = TableRows(
                np.array(list(table), np.int64),
                np.array([v for v, _, _ in table.values()], np.float32).reshape(-1, dim),
                np.array([s for _, s, _ in table.values()], np.float32).reshape(-1, slots),
                np.array([t for _, _, t in table.values()], np.uint32),
                np.empty(0, np.int64),
                cut.tables[name].admission,
            )
        return replace(cut, tables=tables, written_ms={})


def as_lines(places: np.ndarray, lines: np.ndarray) -> dict[int, tuple[list[float], list[float], int]]:
    return {place: (line, [], 0) for place, line in zip(places.tolist(), lines.tolist(), strict=True)}


def replayed(manifests: list[Manifest]) -> State:
    """Applies a base and its deltas as a reader does: first the removed keys, then the rows; also filter lines."""
    state: State = {name: {} for name in [*DIMS, "lines"]}
    shape = ""
    for manifest in manifests:
        rows, slots, removed = read_rows(manifest), read_slots(manifest), read_removed(manifest)
        seen = read_admission(manifest)
        assert seen["user"].shape == "" and not len(seen["user"].places)
        if seen["item"].shape != shape:
            state["lines"], shape = {}, seen["item"].shape
        state["lines"].update(as_lines(seen["item"].places, seen["item"].lines))
        for name in DIMS:
            table = state[name]
            for key in removed[name].tolist():
                del table[key]
            (keys, values), (ticks, state_of) = rows[name], slots[name]
            entries = zip(keys.tolist(), values.tolist(), state_of.tolist(), ticks.tolist(), strict=True)
            table.update({k: (v, s, t) for k, v, s, t in entries})
    return state


def begun(path: Path, deltas: int, seed: int = 7) -> tuple[Log, str, Oracle]:
    """Begins a log with one lineage of a base and some deltas."""
    log, oracle = Log(path), Oracle(seed)
    lineage = log.new_lineage()
    with Writer(log, lineage) as writer:
        writer.first_base(oracle.whole())
        for _ in range(deltas):
            writer.delta(oracle.change())
    return log, lineage, oracle
