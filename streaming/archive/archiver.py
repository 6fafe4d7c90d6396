"""The archive: examples, impressions and actions as Parquet by event hour, each record once (docs/archive.md).

    python -m streaming.archive.archiver --source simulator --kafka 127.0.0.1:9092 --to var/archive --port 8610

    archive = Archive("var/archive")
    day = archive.read("examples", begin_ms, end_ms)        # NotArchived while the interval is not complete

A killed archiver goes on at its newest manifest's positions. A broker that goes away is waited for. SIGTERM: a last
commit, then exit 0; where the broker does not let it come to that, exit 0 without it.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge

from common.health import Health
from streaming.archive.archive import TOPICS
from streaming.archive.columns import schemas
from streaming.archive.commits import ArchiveError, Writer
from streaming.archive.rows import Decoder
from streaming.declaration import Declaration
from streaming.source import load
from streaming.topics import EXAMPLES

READ_AT_ONCE = 4096
END_WITHIN_S = 4.0  # the clients of a broker that is gone wait for half a minute

log = logging.getLogger("archive")


class Late(BaseException):
    """It was told to end, and still waits; no client may take it for an error of its own."""


class Gauges:
    """What /metrics says of the archiver."""

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
    """Reads, and commits each `flush_ms` or `flush_rows`, whichever is first."""

    def __init__(
        self, reader: Any, writer: Writer, declaration: Declaration, flush_ms: int, flush_rows: int, gauges: Gauges
    ) -> None:
        from streaming.reader import Beats

        self._reader, self._writer, self._declaration, self._gauges = reader, writer, declaration, gauges
        self._flush_s, self._flush_rows = flush_ms / 1000, flush_rows
        self._decoder, self._schemas = Decoder(declaration), schemas(declaration)
        kept = writer.newest.beats if writer.newest else {}
        self._beats = {topic: Beats(kept.get(topic)) for topic in TOPICS}
        self._tables: dict[str, list[pa.Table]] = {topic: [] for topic in TOPICS}
        self._rows = 0
        self._next = time.monotonic() + self._flush_s

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.turn()
        self.commit()

    def turn(self) -> None:
        """Read, and commit when it is time."""
        for (topic, partition), records in self._reader.poll(200, READ_AT_ONCE).items():
            rows = self._decoder.rows(topic, partition, records)
            for place, kind, reason in rows.bad:
                record = records[place]
                self._reader.bury(topic, partition, record.offset, record.value or b"", kind, reason)
            for beat in rows.beats:
                self._beats[topic].see(partition, beat.heartbeat_ms, beat.subtask, beat.subtasks)
            if rows.table.num_rows:
                self._tables[topic].append(rows.table)
                self._rows += rows.table.num_rows
        if self._rows >= self._flush_rows or time.monotonic() >= self._next:
            try:
                self.commit()
            except OSError as e:
                self._gauges.errors.inc()
                log.error("commit failed: %s; tried again in %.0f s", e, self._flush_s)
                time.sleep(self._flush_s)  # nothing more is read: what is buffered is all that memory has to hold
            self._next = time.monotonic() + self._flush_s
            self._gauges.lag.set(self._reader.lag())
            self._gauges.dead.set(self._reader.dead)

    def until_ms(self) -> dict[str, int]:
        """Topic -> event time up to which all was read; it never falls."""
        before = self._writer.newest.until_ms if self._writer.newest else {}
        found = {}
        for topic in TOPICS:
            least = self._beats[topic].least(self._reader.partitions(topic))
            if topic != EXAMPLES and least >= 0:
                least = max(-1, least - self._declaration.max_disorder_ms - 1)  # as the join counts it
            found[topic] = max(least, before.get(topic, -1))
        return found

    def commit(self) -> None:
        """Keep what was read, if it says anything new."""
        until, before = self.until_ms(), self._writer.newest
        if not self._rows and before is not None and until == before.until_ms:
            return
        tables = {t: pa.concat_tables(parts) for t, parts in self._tables.items() if parts}
        positions = self._reader.positions()
        made = self._writer.commit(tables, positions, {t: b.kept() for t, b in self._beats.items()}, until)
        for topic, table in tables.items():
            self._gauges.records.labels(topic).inc(table.num_rows)
        for topic, ms in until.items():
            self._gauges.until.labels(topic).set(ms)
        self._gauges.commits.inc()
        if self._rows:
            log.info("commit %d: %s", made.commit, ", ".join(f"{t.num_rows} {n}" for n, t in tables.items()))
        self._tables, self._rows = {topic: [] for topic in TOPICS}, 0


def main(argv: list[str] | None = None) -> int:
    from kafka.errors import OffsetOutOfRangeError

    from streaming.reader import ForeignTopic

    args = _arguments(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # says each retry of each connection; we say it once
    stopping, gauges = threading.Event(), Gauges()

    def end(*_: object) -> None:
        stopping.set()
        signal.setitimer(signal.ITIMER_REAL, END_WITHIN_S)

    def late(*_: object) -> None:
        raise Late

    for number, handler in ((signal.SIGTERM, end), (signal.SIGINT, end), (signal.SIGALRM, late)):
        signal.signal(number, handler)
    health = Health(args.port, gauges.registry)
    try:
        declaration = load(args.source).declaration
        with Writer(args.to, args.source, declaration.sha256) as writer:
            _run(args, declaration, writer, stopping, gauges, health)
    except (ValueError, ArchiveError, ForeignTopic) as e:
        log.error("%s", e)
        return 2
    except OffsetOutOfRangeError as e:
        log.error("%s: a position is no longer in its topic (retention), records are lost: %s; begin a new folder",
                  args.to, e)  # fmt: skip
        return 2
    except Late:
        log.warning("kafka %s does not answer: ended without a last commit, its records are read again", args.kafka)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # else it may come when nothing handles it any more
        health.close()
    return 0


def _run(
    args: argparse.Namespace, declaration: Declaration, writer: Writer, stopping: threading.Event, gauges: Gauges,
    health: Health,
) -> None:  # fmt: skip
    from kafka.errors import KafkaError, OffsetOutOfRangeError

    from streaming.reader import Reader

    while not stopping.is_set():
        positions = writer.newest.positions if writer.newest else {}
        try:
            reader = Reader(args.kafka, TOPICS, positions, "the archive's", "begin a new folder (--to)")
        except (KafkaError, OSError) as e:
            health.reason = f"waiting for kafka {args.kafka}: {e}"
            log.info("%s", health.reason)
            gauges.errors.inc()
            stopping.wait(1)
            continue
        health.reason = ""
        try:
            Archiver(reader, writer, declaration, args.flush_ms, args.flush_rows, gauges).run(stopping)
            signal.setitimer(signal.ITIMER_REAL, 0)
            return
        except OffsetOutOfRangeError:
            raise
        except KafkaError as e:  # dead letters that were not acknowledged: read again from the newest manifest
            gauges.errors.inc()
            log.error("kafka %s: %s; begun again at the newest manifest", args.kafka, e)
            stopping.wait(1)
        finally:
            reader.close()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "streaming.archive.archiver",
        description="Keep examples, impressions and actions as Parquet by event hour, each record once.",
        epilog="docs/archive.md says how it is committed, what a kill leaves, and how it is read.",
    )
    parser.add_argument("--source", required=True, help="kuairand, simulator?seed=7, a module, or a path to a .py file")
    parser.add_argument("--kafka", required=True, metavar="H:P", help="the broker's address")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="the archive's folder")
    parser.add_argument("--flush-ms", type=int, default=10_000, metavar="N", help="a commit each (default: 10000)")
    parser.add_argument("--flush-rows", type=int, default=50_000, metavar="N", help="or so many (default: 50000)")
    parser.add_argument("--port", type=int, default=0, help="of /healthz and /metrics on 127.0.0.1 (0: none)")
    args = parser.parse_args(argv)
    for name in ("flush_ms", "flush_rows"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, allowed is 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(main())
