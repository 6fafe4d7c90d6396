"""Folds a base and its deltas into whole tables as of the last delta, with the times of their ticks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from delta_log.files import Filter, Float32s, TableRows, Weight, read_dense, read_served, read_tables
from delta_log.manifest import LogBroken, Manifest


def overlay(parts: list[TableRows]) -> TableRows:
    """Lays each delta over the base. The newest value of a key wins, and a removed key has no row."""
    keys = np.concatenate([np.concatenate((p.removed, p.keys)) for p in parts])
    # The place of each entry among all rows; -1 if the entry is a removal.
    starts = np.cumsum([0, *(len(p.keys) for p in parts)])
    place = np.concatenate(
        [
            np.concatenate((np.full(len(p.removed), -1), np.arange(len(p.keys)) + start))
            for p, start in zip(parts, starts, strict=False)
        ]
    )
    _, last = np.unique(keys[::-1], return_index=True)  # first of the reversed: the last of each key
    chosen = place[len(keys) - 1 - last]
    chosen = np.sort(chosen[chosen >= 0])
    return TableRows(
        np.concatenate([p.keys for p in parts])[chosen],
        np.concatenate([p.rows for p in parts])[chosen],
        np.concatenate([p.slots for p in parts])[chosen],
        np.concatenate([p.ticks for p in parts])[chosen],
        np.empty(0, np.int64),
        overlay_lines([p.admission for p in parts]),
    )


def overlay_lines(parts: list[Filter]) -> Filter:
    """Lays the lines of admission filters over each other, by place. A filter of a new shape begins empty."""
    shape, since = parts[-1].shape, 0
    for i, part in enumerate(parts):
        if part.shape != shape:
            since = i + 1
    places = np.concatenate([p.places for p in parts[since:]])
    chosen, last = np.unique(places[::-1], return_index=True)
    return Filter(shape, chosen, np.concatenate([p.lines for p in parts[since:]])[len(places) - 1 - last])


def merged(base: Manifest, deltas: list[Manifest]) -> dict[str, TableRows]:
    """Reads the whole tables as of the last of `deltas`. Raises LogBroken if their sizes differ from its manifest."""
    parts = [read_tables(m) for m in (base, *deltas)]
    last = deltas[-1] if deltas else base
    tables = {name: overlay([part[name] for part in parts]) for name in base.tables}
    for name, info in last.tables.items():
        if len(tables[name].keys) != info.total:
            raise LogBroken(
                f"{last.folder}: table {name}: {len(tables[name].keys)} rows after {last.name}, expected {info.total}"
            )
    return tables


def dense_weights(base: Manifest, deltas: list[Manifest]) -> tuple[dict[str, Weight], dict[str, Float32s]]:
    """Reads the dense weights as of the last of `deltas`: those of training, and those that are served."""
    weights, served = read_dense(base), read_served(base)
    for delta in deltas:
        weights, served = read_dense(delta) or weights, read_served(delta) or served
    return weights, served


def tick_times(manifests: list[Manifest]) -> dict[int, int]:
    """Collects the times of ticks of a chain: tick -> newest event time when it ended."""
    return {int(tick): ms for m in manifests for tick, ms in m.tick_times.items()}


PRECISION = 128
"""A row of age a may stay a / PRECISION longer. So a year of ticks needs about a thousand entries."""


def thinned(tick_times: Mapping[int, int], oldest: int = 0) -> dict[int, int]:
    """Thins the times of ticks to those that rows with ticks >= `oldest` need. A missing tick counts as the next one.

    It keeps the last tick of each interval of event time. The length of an interval follows from its age: the greatest
    power of two within age / PRECISION. The intervals nest, so repeated thinning keeps that precision.
    """
    newest = max(tick_times.values(), default=-1)
    last: dict[tuple[int, int], int] = {}
    for tick in sorted(t for t, ms in tick_times.items() if t >= oldest and ms >= 0):
        length = max((newest - tick_times[tick]) // PRECISION, 1).bit_length() - 1
        last[length, tick_times[tick] >> length] = tick
    return {tick: tick_times[tick] for tick in sorted(last.values())}
