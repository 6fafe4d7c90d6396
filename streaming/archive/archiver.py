"""The archiver: keeps examples, impressions and actions as Parquet by event hour, each record once (docs/archive.md).

    python -m streaming.archive.archiver --source simulator --kafka 127.0.0.1:9092 --to var/archive --port 8610

After a kill it continues at the positions of its newest manifest. It waits for a broker that is away. On SIGTERM it
makes a last commit and exits with 0; if no broker answers in time, it exits with 0 without the commit.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge

from common import process
from streaming.archive.archive import TOPICS
from streaming.archive.commits import Writer
from streaming.archive.rows import Decoder
from streaming.declaration import Declaration
from streaming.event_time import EventTime
from streaming.reader import Beats, Reader
from streaming.source import load
from streaming.topics import EXAMPLES

READ_AT_ONCE = 4096
PATIENCE_MS = 300
"""So long the broker gathers records for it. A commit is some 10 s away, and each answer costs both of them."""
END_WITHIN_S = 4.0

log = process.logger("archive")


class Gauges:
    """The metrics of the archiver."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        name = "minutehand_archive_"
        self.records = Counter(name + "records", "Records archived by this process", ["topic"], registry=r)
        self.commits = Counter(name + "commits", "Manifests written by this process", registry=r)
        self.errors = Counter(name + "errors", "Failed commits and unreachable brokers", registry=r)
        self.dead = Gauge(name + "dead_records", "Lines put into dead-letter topics", registry=r)
        self.lag = Gauge(name + "lag_records", "Records of the topics not read yet", registry=r)
        self.until = Gauge(name + "until_ms", "Event time up to which it is complete", ["topic"], registry=r)


class Archiver:
    """Reads the topics, and commits every `flush_ms` or `flush_rows`, whichever comes first."""

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        declaration: Declaration,
        event_time: EventTime,
        flush_ms: int,
        flush_rows: int,
        gauges: Gauges,
    ) -> None:
        self._reader, self._writer, self._event_time, self._gauges = reader, writer, event_time, gauges
        self._flush_s, self._flush_rows = flush_ms / 1000, flush_rows
        self._decoder = Decoder(declaration, event_time)
        beats = writer.newest.beats if writer.newest else {}
        self._beats = {topic: Beats(beats.get(topic)) for topic in TOPICS}
        self._tables: dict[str, list[pa.Table]] = {topic: [] for topic in TOPICS}
        self._records: dict[tuple[str, int], list[Any]] = {}
        self._rows = 0
        self._next = time.monotonic() + self._flush_s

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.turn()
        self.commit()

    def turn(self) -> None:
        """Reads once, and commits if it is time. Decoding few records costs as much as decoding many."""
        for place, records in self._reader.poll(200, READ_AT_ONCE).items():
            waiting = self._records.setdefault(place, [])
            waiting += records
            self._rows += len(records)
            if len(waiting) >= READ_AT_ONCE:
                self._decode(place)
        if self._rows >= self._flush_rows or time.monotonic() >= self._next:
            try:
                self.commit()
            except OSError as e:
                self._gauges.errors.inc()
                log.error("commit failed: %s; tried again in %.0f s", e, self._flush_s)
                time.sleep(self._flush_s)  # and reads nothing meanwhile, so that the buffer does not grow
            self._next = time.monotonic() + self._flush_s
            self._gauges.lag.set(self._reader.lag())
            self._gauges.dead.set(self._reader.dead)

    def _decode(self, place: tuple[str, int]) -> None:
        """Decodes the records of a partition that were read since the last time."""
        (topic, partition), records = place, self._records.pop(place)
        rows = self._decoder.rows(topic, partition, records)
        for at, kind, reason in rows.bad:
            record = records[at]
            self._reader.bury(topic, partition, record.offset, record.value or b"", kind, reason)
        for beat in rows.beats:
            self._beats[topic].see(partition, beat.heartbeat_ms, beat.subtask, beat.subtasks)
        if rows.table.num_rows:
            self._tables[topic].append(rows.table)

    def until_ms(self) -> dict[str, int]:
        """Topic -> event time up to which everything was read. It never falls."""
        before = self._writer.newest.until_ms if self._writer.newest else {}
        until = {}
        for topic in TOPICS:
            least = self._beats[topic].least(self._reader.partitions(topic))
            if topic != EXAMPLES and least >= 0:
                least = max(-1, self._event_time.closed_ms(least))
            until[topic] = max(least, before.get(topic, -1))
        return until

    def commit(self) -> None:
        """Commits what was read since the last commit, if there is anything new."""
        for place in list(self._records):
            self._decode(place)
        until, before = self.until_ms(), self._writer.newest
        if not any(self._tables.values()) and before is not None and until == before.until_ms:
            return
        tables = {t: pa.concat_tables(parts) for t, parts in self._tables.items() if parts}
        positions = self._reader.positions()
        commit = self._writer.commit(tables, positions, {t: b.by_key() for t, b in self._beats.items()}, until)
        for topic, table in tables.items():
            self._gauges.records.labels(topic).inc(table.num_rows)
        for topic, ms in until.items():
            self._gauges.until.labels(topic).set(ms)
        self._gauges.commits.inc()
        if tables:
            log.info("commit %d: %s", commit.commit, ", ".join(f"{t.num_rows} {n}" for n, t in tables.items()))
        self._tables, self._rows = {topic: [] for topic in TOPICS}, 0


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments(
        "streaming.archive.archiver",
        "Keep examples, impressions and actions as Parquet by event hour, each record once.",
        epilog="docs/archive.md has the commit, what a kill leaves, and how it is read.",
    )
    add, count = parser.add_argument, process.at_least(1)
    parser.shared("source", "kafka")
    add("--to", required=True, type=Path, metavar="DIR", help="the archive's folder")
    add("--flush-ms", type=count, default=10_000, metavar="N", help="the time between two commits (default: 10000)")
    add("--flush-rows", type=count, default=50_000, metavar="N", help="rows that make a commit too (default: 50000)")
    EventTime.arguments(parser)
    parser.shared("port")
    args = parser.parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    gauges = Gauges()
    with process.Service(args.port, gauges.registry, gauges.errors, END_WITHIN_S) as service:
        declaration = load(args.source).declaration
        with Writer(args.to, args.source, declaration) as writer:

            def connect() -> Reader:
                positions = writer.newest.positions if writer.newest else {}
                return Reader(args.kafka, TOPICS, positions, "the archive's", "begin a new folder (--to)", PATIENCE_MS)

            def archive(reader: Reader) -> None:
                archiver = Archiver(
                    reader, writer, declaration, EventTime.of_arguments(args), args.flush_ms, args.flush_rows, gauges
                )
                archiver.run(service.stopping)

            service.follow(args.kafka, connect, archive)
    if service.late:
        log.warning("kafka %s does not answer: ended without a last commit, its records are read again", args.kafka)


if __name__ == "__main__":
    sys.exit(main())
