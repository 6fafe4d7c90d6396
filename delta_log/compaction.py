"""Makes a new base from files, the newest base and its deltas, while training continues."""

from __future__ import annotations

from delta_log.fold import dense_weights, merged, thinned, tick_times
from delta_log.log import Log
from delta_log.manifest import Manifest
from delta_log.writer import Cut, Writer


def compact(log: Log, writer: Writer) -> Manifest | None:
    """Writes the base as of the newest delta. Returns None if there is no delta after the newest base."""
    base, deltas = log.chain(writer.lineage)
    if not deltas:
        return None
    last, tables = deltas[-1], merged(base, deltas)
    dense, served = dense_weights(base, deltas)
    oldest = min((int(t.ticks.min()) for t in tables.values() if len(t.ticks)), default=last.tick)
    cut = Cut(
        source=last.source,
        declaration=last.declaration,
        model=last.model,
        tables=tables,
        dense=dense,
        served=served if last.dense_seq < last.seq else {},
        totals={name: info.total for name, info in last.tables.items()},
        tick=last.tick,
        tick_times=thinned(tick_times([base, *deltas]), oldest),
        positions=last.positions,
        learned=(int(last.learned["count"]), int(last.learned["sum"])),
        learned_until_ms=last.learned_until_ms,
        digest={name: int(value) for name, value in last.digest.items()},
    )
    return writer.base(last.seq, cut)
