"""The archive: examples, impressions and actions as Parquet by event hour, each record once (docs/archive.md).

    python -m streaming.archive --source simulator --kafka 127.0.0.1:9092 --to var/archive --port 8610

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry, Counter, Gauge

from streaming import archive_log
from streaming.archive_log import ArchiveError, Commit, File, Writer
from streaming.archive_rows import Decoder
from streaming.columns import TIME, schemas
from streaming.declaration import Declaration
from streaming.health import Health
from streaming.source import load
from streaming.topics import ACTIONS, EXAMPLES, IMPRESSIONS

TOPICS = (EXAMPLES, IMPRESSIONS, ACTIONS)
READ_AT_ONCE = 4096
END_WITHIN_S = 4.0  # the clients of a broker that is gone wait for half a minute

log = logging.getLogger("archive")


class NotArchived(RuntimeError):
    """What was asked for is not in the archive, or not yet; the message says what is."""


class Late(BaseException):
    """It was told to end, and still waits; no client may take it for an error of its own."""


class Archive:
    """An archive's folder as its readers see it: without locks, and anew at each call."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def until_ms(self, topic: str) -> int:
        """Event time up to which the topic is complete; -1 while nothing says so."""
        found = archive_log.read(self.path)
        return found[0].until_ms.get(topic, -1) if found else -1

    def since_ms(self, topic: str) -> int:
        """Earliest event time the archive knows of; -1 while there is none."""
        found = archive_log.read(self.path)
        return found[0].since_ms.get(topic, -1) if found else -1

    def read(self, topic: str, begin_ms: int, end_ms: int) -> pa.Table:
        """The records with begin_ms <= time < end_ms, in order of (time, partition, offset)."""
        for attempt in range(5):
            newest, files = self._complete(topic, begin_ms, end_ms)
            inside = {n: f for n, f in files.items() if f.begin_ms < end_ms and f.end_ms >= begin_ms}
            try:
                parts = [archive_log.load(self.path, n, f) for n, f in inside.items()]
            except FileNotFoundError:  # merged meanwhile: the newest manifest names what took them in
                if attempt == 4:
                    raise
                continue
            if not parts:
                return self._nothing(topic, files)
            table = pa.concat_tables(parts)
            time_ms = table[TIME[topic]]
            inner = pc.and_(pc.greater_equal(time_ms, begin_ms), pc.less(time_ms, end_ms))
            return archive_log.by_time(table.filter(inner), topic).combine_chunks()
        raise AssertionError

    def positions(self, topic: str, end_ms: int) -> dict[str, Any]:
        """Where the data before `end_ms` ends: each partition's first record at or after it (docs/archive.md)."""
        newest, files = self._complete(topic, -1, end_ms)
        found = newest.positions[topic]
        offsets = {p: int(o) for p, o in found["offsets"].items()}
        for name, file in files.items():
            if file.end_ms < end_ms:
                continue
            places = {p: first for p, (first, _) in file.places.items()}
            if file.begin_ms < end_ms:
                table = archive_log.load(self.path, name, file)
                table = table.filter(pc.greater_equal(table[TIME[topic]], end_ms))
                least = table.group_by("partition").aggregate([("offset", "min")]).to_pylist()
                places = {str(row["partition"]): row["offset_min"] for row in least}
            offsets |= {p: min(first, offsets[p]) for p, first in places.items()}
        return {**found, "offsets": {p: offsets[p] for p in sorted(offsets, key=int)}}

    def _complete(self, topic: str, begin_ms: int, end_ms: int) -> tuple[Commit, dict[str, File]]:
        """The newest commit and the topic's files, if the interval is whole in it."""
        if topic not in TOPICS:
            raise ValueError(f"topic is {topic!r}, allowed are {', '.join(TOPICS)}")
        if end_ms <= begin_ms:
            raise ValueError(f"the interval ends at {end_ms}, allowed is later than its begin {begin_ms}")
        found = archive_log.read(self.path)
        if found is None:
            raise NotArchived(f"{self.path}: there is no archive (python -m streaming.archive writes one)")
        newest, files = found
        until, since = newest.until_ms.get(topic, -1), newest.since_ms.get(topic, -1)
        asked = (
            f"{self.path}: {topic} of {_said(begin_ms)} to {_said(end_ms)}"
            if begin_ms >= 0
            else (f"{self.path}: {topic} before {_said(end_ms)}")
        )
        if until < end_ms - 1:
            known = f"archived until {_said(until)}" if until >= 0 else "no progress of it is archived yet"
            raise NotArchived(f"{asked}: not complete, {known}")
        if end_ms <= since:
            raise NotArchived(f"{asked}: before the archive begins, at {_said(since)}")
        return newest, {n: f for n, f in files.items() if f.topic == topic}

    def _nothing(self, topic: str, files: Mapping[str, File]) -> pa.Table:
        """No rows, with the topic's columns as its other files have them."""
        for name, file in files.items():
            return archive_log.load(self.path, name, file).slice(0, 0)
        raise NotArchived(f"{self.path}: {topic}: no record of it was ever archived")


def _said(ms: int) -> str:
    """A time as people read it, and as it was given."""
    return f"{archive_log.moment(ms)} ({ms})"


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
            for place, reason in rows.bad:
                record = records[place]
                self._reader.bury(topic, partition, record.offset, record.value or b"", reason)
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
        "streaming.archive",
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
