"""An archive made without a broker: a simulator's minutes as the join and the archiver would have left them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

from streaming.archive import columns
from streaming.archive.commits import Writer
from streaming.declaration import Declaration
from streaming.example import Batch, concat, from_exposures
from streaming.hashing import draw
from streaming.source import Exposure, Source, load
from streaming.sources.simulator import START_MS, Simulator
from streaming.topics import ACTIONS, EXAMPLES, IMPRESSIONS

SOURCE = "simulator?seed=7&minutes=60&history_minutes=1&rate=5"
BEGIN_MS = (START_MS // 60_000 + 2) * 60_000
"""A whole minute with the simulator's events before and behind it."""
MINUTE_MS = 60_000
Change = Callable[[dict[str, pa.Table]], dict[str, pa.Table]]


def exposures(source: Simulator, begin_ms: int, end_ms: int) -> list[Exposure]:
    return [e for part in (source.history(), source.live()) for e in part if begin_ms <= e.ts_ms < end_ms]


def joined(declaration: Declaration, shown: list[Exposure], pi: float = 1.0, salt: str = "join") -> Batch:
    """The examples of `shown`, without scores: a positive a task that happened, the negatives in one record."""
    return _joined(from_exposures(shown, declaration), declaration, shown, pi, salt)


def _joined(everything: Batch, declaration: Declaration, shown: list[Exposure], pi: float, salt: str = "join") -> Batch:
    everything.pi = np.full(len(shown), pi)
    parts = []
    for k, task in enumerate(declaration.tasks):
        positive = everything.take(np.flatnonzero(everything.labels[:, k] > 0))
        only = np.zeros_like(positive.labels)
        only[:, k] = 1
        positive.kind = np.full(positive.size, "positive")
        positive.labels, positive.weights = only, only.copy()
        rows = np.flatnonzero(everything.labels[:, k] > 0)
        positive.event_ms = np.array([shown[r].outcomes[task] for r in rows], np.int64)
        parts.append(positive)
    kept = (everything.labels == 0).any(1) & (draw(everything.impression_id, salt) < pi)
    negative = everything.take(np.flatnonzero(kept))
    negative.kind = np.full(negative.size, "negative")
    negative.weights = (negative.labels == 0).astype(np.float32)
    negative.labels = np.zeros_like(negative.labels)
    return concat([*parts, negative])


def tables(source: Simulator, shown: list[Exposure], pi: float = 1.0) -> dict[str, pa.Table]:
    """Topic -> its rows in the archive's columns, scored with the truth."""
    declaration, whole = source.declaration, from_exposures(shown, source.declaration)
    whole.scores = source.truth(shown).astype(np.float32)
    batch = _joined(whole, declaration, shown, pi)
    features = columns.to_table(whole, declaration)
    n, schema = len(shown), columns.schemas(declaration)
    more = {
        "request_id": pa.array([e.impression_id for e in shown]),
        "position": pa.array(np.zeros(n, np.int32)),
        "arm": pa.array([""] * n, pa.string()),
        "read_ms": pa.array(np.zeros(n, np.int64)),
    }
    impressions = {name: features[name] for name in schema[IMPRESSIONS].names if name in features.schema.names} | more
    done = [(e.impression_id, task, at) for e in shown for task, at in e.outcomes.items()]
    actions = {
        "impression_id": pa.array([d[0] for d in done], pa.string()),
        "action": pa.array([d[1] for d in done], pa.string()),
        "ts_ms": pa.array([d[2] for d in done], pa.int64()),
        "value": pa.array([1.0] * len(done), pa.float64()),
        "written_ms": pa.array([d[2] for d in done], pa.int64()),
    }
    return {
        EXAMPLES: examples(batch, declaration),
        IMPRESSIONS: _placed(impressions, schema[IMPRESSIONS]),
        ACTIONS: _placed(actions, schema[ACTIONS]),
    }


def examples(batch: Batch, declaration: Declaration) -> pa.Table:
    """Examples in the archive's columns, in event order."""
    table = columns.to_table(batch.take(np.argsort(batch.event_ms, kind="stable")), declaration)
    return _placed({name: table[name] for name in table.schema.names}, columns.schemas(declaration)[EXAMPLES])


def write(folder: Path, source: Source, parts: Iterable[dict[str, pa.Table]], until_ms: int) -> Path:
    """The archive of `parts`, a commit each, complete until `until_ms`."""
    with Writer(folder, source.declaration.name, source.declaration) as writer:
        seen: dict[str, int] = {}
        for part in parts:
            rows = {}
            for topic, table in part.items():
                first = seen.get(topic, 0)
                place = table.schema.get_field_index("offset")
                numbers = pa.array(np.arange(first, first + table.num_rows), pa.int64())
                rows[topic] = table.set_column(place, "offset", numbers)
                seen[topic] = first + table.num_rows
            found = {t: {"cluster": "c", "topic": t, "topic_id": t, "offsets": {"0": n}} for t, n in seen.items()}
            writer.commit(rows, found, {t: {"0": until_ms} for t in seen}, dict.fromkeys(seen, until_ms))
    return folder


def archive(folder: Path, minutes: int, change: Change = lambda day: day, until_ms: int | None = None) -> Path:
    """`minutes` of the simulator from BEGIN_MS, in one commit after `change`; complete to their end, or `until_ms`."""
    source = simulator()
    end_ms = BEGIN_MS + minutes * MINUTE_MS
    shown = exposures(source, BEGIN_MS - source.declaration.window_ms, end_ms)
    return write(folder, source, [change(tables(source, shown))], until_ms or end_ms - 1)


def simulator() -> Simulator:
    return cast(Simulator, load(SOURCE))  # `load` judges what it gives, and passes the rest on


def declared() -> Declaration:
    return simulator().declaration


def _placed(values: dict[str, pa.Array], schema: pa.Schema) -> pa.Table:
    n = len(next(iter(values.values())))
    places = {"partition": pa.array(np.zeros(n, np.int32)), "offset": pa.array(np.arange(n), pa.int64())}
    filled = {name: {**values, **places}[name] for name in schema.names}
    return pa.table({name: column.cast(schema.field(name).type) for name, column in filled.items()}, schema=schema)
