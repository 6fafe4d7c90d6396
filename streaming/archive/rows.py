"""Decodes Kafka's records for the archive: a table of a topic's columns, heartbeats, bad lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.archive.columns import schemas, to_table
from streaming.archive.quick import Quick
from streaming.contract.contract import Contract
from streaming.contract.schema import BadMessage
from streaming.declaration import Declaration
from streaming.event_time import EventTime
from streaming.example import Progress, decode
from streaming.topics import ACTIONS, EXAMPLES, IMPRESSIONS

FEW = 8
"""So few records are read one by one."""


class Rows(NamedTuple):
    """The records of one partition: their table, the progress in order, and (place, kind, reason) of each bad line."""

    table: pa.Table
    beats: list[Progress]
    bad: list[tuple[int, str, str]]


class Decoder:
    """Decodes the records of the three topics, each by its topic's contract."""

    def __init__(self, declaration: Declaration, event_time: EventTime) -> None:
        self._event_time = event_time
        self._declaration, self._schemas = declaration, schemas(declaration)
        self._contract = Contract(declaration)
        features = {f"feature_{f.name}": f.default for f in declaration.features}
        self._quick = {
            topic: Quick(self._contract.rule(topic), self._schemas[topic], features | self._contract.defaults(topic))
            for topic in (IMPRESSIONS, ACTIONS)
        }

    def rows(self, topic: str, partition: int, records: Sequence[Any]) -> Rows:
        """Decodes the records of one partition. The rows of its table have no order."""
        if topic == EXAMPLES:
            return self._examples(partition, records)
        beats = [k for k, record in enumerate(records) if b"heartbeat_ms" in (record.value or b"heartbeat_ms")]
        others = np.setdiff1d(np.arange(len(records)), beats)
        quick: list[pa.Table] = []
        slow = [*beats, *self._read(topic, partition, records, others, quick)]
        rows = self._one_by_one(topic, partition, records, sorted(slow))
        newest_ms = rows.beats[0].heartbeat_ms if rows.beats else -1
        if len(others) and (ms := self._event_time.of(max(records[k].timestamp for k in others), {})) is not None:
            newest_ms = max(newest_ms, ms)
        beat = [Progress(0, 1, newest_ms)] if newest_ms >= 0 else []
        return Rows(pa.concat_tables([*quick, rows.table]), beat, rows.bad)

    def _read(
        self, topic: str, partition: int, records: Sequence[Any], places: NDArray[np.int64], tables: list[pa.Table]
    ) -> list[int]:
        """Adds the tables of the records at `places` to `tables`. Returns the places of those that it is not sure of.

        It reads by halves: k records that it is not sure of, among n, cost about k log n small reads.
        """
        if len(places) <= FEW:
            return [int(k) for k in places]
        table = self._quick[topic].table([records[k].value for k in places])
        if table is None:
            middle = len(places) // 2
            halves = (places[:middle], places[middle:])
            return [k for half in halves for k in self._read(topic, partition, records, half, tables)]
        places_of = {
            "written_ms": [records[k].timestamp for k in places],
            "partition": np.full(len(places), partition, np.int32),
            "offset": [records[k].offset for k in places],
        }
        for name, values in places_of.items():
            table = table.append_column(name, pa.array(values, self._schemas[topic].field(name).type))
        tables.append(table.select(self._schemas[topic].names))
        return []

    def _one_by_one(self, topic: str, partition: int, records: Sequence[Any], places: Sequence[int]) -> Rows:
        """Decodes the records at `places`, each by itself, and names what is wrong with it."""
        events: list[dict[str, Any]] = []
        newest_ms = -1
        bad: list[tuple[int, str, str]] = []
        for place in places:
            record = records[place]
            try:
                event = self._contract.read(topic, record.value)
            except BadMessage as e:
                bad.append((place, e.kind, str(e)))
                event = {}
            if (ms := self._event_time.of(record.timestamp, event)) is not None:
                newest_ms = max(newest_ms, ms)
            if event and "heartbeat_ms" not in event:
                here = {"written_ms": record.timestamp, "partition": partition, "offset": record.offset}
                events.append({**self._columns(topic, event), **here})
        beats = [Progress(0, 1, newest_ms)] if newest_ms >= 0 else []
        return Rows(pa.Table.from_pylist(events, self._schemas[topic]), beats, bad)

    def _examples(self, partition: int, records: Sequence[Any]) -> Rows:
        batch = decode([r.value or b"" for r in records], self._declaration)
        bad = [(place, "example", reason) for place, reason in batch.bad]
        offsets = np.array([r.offset for r in records], np.int64)[batch.line]
        table = to_table(batch, self._declaration)
        table = table.append_column("partition", pa.array(np.full(batch.size, partition, np.int32)))
        table = table.append_column("offset", pa.array(offsets, pa.int64()))
        return Rows(table.cast(self._schemas[EXAMPLES]), batch.progress, bad)

    def _columns(self, topic: str, event: dict[str, Any]) -> dict[str, Any]:
        columns = {**self._contract.defaults(topic), **event}
        if topic == IMPRESSIONS:
            scores, features = columns["scores"], columns["features"]
            columns |= {f"score_{task}": scores.get(task) for task in self._declaration.tasks}
            for f in self._declaration.features:
                value = features.get(f.name, f.default)
                # Arrow takes no integer for a float that cannot hold it exactly.
                columns[f"feature_{f.name}"] = float(value) if f.kind == "number" else value
        else:
            columns["value"] = float(columns["value"])
        return columns
