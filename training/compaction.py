"""A new base out of files: the newest base with its deltas laid over it, while training goes on."""

from __future__ import annotations

import numpy as np

from training.delta import Log, LogBroken, Manifest
from training.expiry import thinned
from training.log_writer import Cut, Writer
from training.row_files import Filter, TableRows, read_dense, read_tables


def overlay(parts: list[TableRows]) -> TableRows:
    """A base's rows and then each delta's, absolute values: the last word on a key stands; removed keys are gone."""
    keys = np.concatenate([np.concatenate((p.removed, p.keys)) for p in parts])
    # Place of each entry among all rows, -1 where the entry is a removal.
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
    """The same of an admission filter's lines, by place; one of another shape than the one before began empty."""
    shape, since = parts[-1].shape, 0
    for i, part in enumerate(parts):
        if part.shape != shape:
            since = i + 1
    places = np.concatenate([p.places for p in parts[since:]])
    chosen, last = np.unique(places[::-1], return_index=True)
    return Filter(shape, chosen, np.concatenate([p.lines for p in parts[since:]])[len(places) - 1 - last])


def merged(base: Manifest, deltas: list[Manifest]) -> dict[str, TableRows]:
    """The whole tables as of the last of `deltas`; LogBroken if their sizes are not what its manifest says."""
    read = [read_tables(m) for m in (base, *deltas)]
    last = deltas[-1] if deltas else base
    tables = {name: overlay([r[name] for r in read]) for name in base.tables}
    for name, info in last.tables.items():
        if len(tables[name].keys) != info.total:
            raise LogBroken(
                f"{last.folder}: table {name}: {len(tables[name].keys)} rows after {last.name}, expected {info.total}"
            )
    return tables


def tick_times(manifests: list[Manifest]) -> dict[int, int]:
    """Tick -> newest event time when it ended, of all that a chain says."""
    return {int(tick): ms for m in manifests for tick, ms in m.tick_times.items()}


def compact(log: Log, writer: Writer) -> Manifest | None:
    """Write the base of the newest delta; None if the newest base is already that."""
    base, deltas = log.chain(writer.lineage)
    if not deltas:
        return None
    last, tables = deltas[-1], merged(base, deltas)
    oldest = min((int(t.ticks.min()) for t in tables.values() if len(t.ticks)), default=last.tick)
    cut = Cut(
        source=last.source,
        declaration=last.declaration,
        tables=tables,
        dense=read_dense(last),
        totals={name: info.total for name, info in last.tables.items()},
        tick=last.tick,
        tick_times=thinned(tick_times([base, *deltas]), oldest),
        positions=last.positions,
        learned=(int(last.learned["count"]), int(last.learned["sum"])),
        learned_until_ms=last.learned_until_ms,
        digest={name: int(value) for name, value in last.digest.items()},
    )
    return writer.base(last.seq, cut)
