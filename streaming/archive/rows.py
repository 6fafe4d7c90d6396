"""What Kafka's records become in the archive: a table of their topic's columns, heartbeats, bad lines with reasons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from streaming.archive.columns import schemas, to_table
from streaming.declaration import Declaration
from streaming.events import problem
from streaming.events import schemas as event_schemas
from streaming.example import Progress, decode
from streaming.topics import EXAMPLES, IMPRESSIONS

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_YEAR_9999_MS = 253_402_300_800_000
_ABSENT: dict[str, Any] = {"request_id": "", "position": 0, "lineage": "", "seq": -1, "arm": "", "read_ms": 0}


class Rows(NamedTuple):
    """Of one partition: the records' table, progress in its order, (place, reason) of each bad line."""

    table: pa.Table
    beats: list[Progress]
    bad: list[tuple[int, str]]


class Decoder:
    """Records of the three topics, each by its topic's schema."""

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration
        self._schemas, self._events = schemas(declaration), event_schemas(declaration)

    def rows(self, topic: str, partition: int, records: Sequence[Any]) -> Rows:
        """Kafka's records of one partition, in their order."""
        if topic == EXAMPLES:
            return self._examples(partition, records)
        found: list[dict[str, Any]] = []
        beats: list[Progress] = []
        bad: list[tuple[int, str]] = []
        for place, record in enumerate(records):
            event, reason = self._event(topic, record.value or b"")
            if event is None:
                bad.append((place, reason))
            elif "heartbeat_ms" in event:
                beats.append(Progress(0, 1, event["heartbeat_ms"]))
            else:
                here = {"written_ms": record.timestamp, "partition": partition, "offset": record.offset}
                found.append({**self._columns(topic, event), **here})
        return Rows(pa.Table.from_pylist(found, self._schemas[topic]), beats, bad)

    def _examples(self, partition: int, records: Sequence[Any]) -> Rows:
        batch = decode([r.value or b"" for r in records], self._declaration)
        progress, bad = batch.progress, batch.bad
        outside = (batch.event_ms < 0) | (batch.event_ms >= _YEAR_9999_MS)  # no hour has such a name
        if outside.any():
            bad = sorted([*bad, *((int(k), "event_ms is negative or past the year 9999") for k in batch.line[outside])])
            batch = batch.take(np.flatnonzero(~outside))
        offsets = np.array([r.offset for r in records], np.int64)[batch.line]
        table = to_table(batch, self._declaration)
        table = table.append_column("partition", pa.array(np.full(batch.size, partition, np.int32)))
        table = table.append_column("offset", pa.array(offsets, pa.int64()))
        return Rows(table.cast(self._schemas[EXAMPLES]), progress, bad)

    def _event(self, topic: str, line: bytes) -> tuple[dict[str, Any] | None, str]:
        """An event or a heartbeat; or None and what is wrong with it."""
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                return None, "no JSON object"
            if "heartbeat_ms" in event:
                ms = event["heartbeat_ms"]
                good = isinstance(ms, int) and not isinstance(ms, bool) and 0 <= ms < _YEAR_9999_MS
                return (event, "") if good else (None, f"heartbeat_ms is {str(ms)[:60]}")
            reason = problem(self._events[topic], event)
            if reason is None and event["ts_ms"] >= _YEAR_9999_MS:
                reason = f"ts_ms is {event['ts_ms']}, allowed is up to the year 9999"
            if reason is None and topic == IMPRESSIONS:
                numbers = [f.name for f in self._declaration.features if f.kind == "number"]
                wide = [n for n in numbers if abs(event["features"].get(n, 0)) > _FLOAT32_MAX]
                reason = f"feature {wide[0]} is not finite as a float32" if wide else None
        except (ValueError, OverflowError, RecursionError) as e:  # not UTF-8, no JSON, a number beyond any float
            return None, str(e)
        return (None, reason) if reason else (event, "")

    def _columns(self, topic: str, event: dict[str, Any]) -> dict[str, Any]:
        columns = {**event}
        if topic == IMPRESSIONS:
            columns = {**_ABSENT, **columns}
            scores, features = columns.get("scores") or {}, columns["features"]
            columns |= {f"score_{task}": scores.get(task) for task in self._declaration.tasks}
            for f in self._declaration.features:
                value = features.get(f.name, f.default)
                # Arrow takes no integer for a float that cannot hold it exactly.
                columns[f"feature_{f.name}"] = float(value) if f.kind == "number" else value
        elif "value" in columns:
            columns["value"] = float(columns["value"])
        return columns
