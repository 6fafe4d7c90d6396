"""The online trainer: learns from the examples topic as it grows and writes a delta each sync.

    python -m training.learn.online --source simulator --log var/log --kafka 127.0.0.1:9092 --sync-every-ms 60000

It goes on where the newest manifest of the lineage ends, so a kill costs nothing that was committed and nothing is
learned twice. A broker that goes away is waited for. SIGTERM: a last delta, then exit 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kafka.errors import KafkaError, OffsetOutOfRangeError
from prometheus_client import CollectorRegistry, Counter, Gauge

from common.health import Health
from delta_log.compaction import compact
from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from delta_log.publication import Publication
from delta_log.writer import Cut, Writer, prune_lineages
from streaming.example import Batch, concat, decode
from streaming.reader import ForeignTopic
from streaming.source import load
from training.learn.feed import Feed
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.learn.takeover import AtHead, Moved
from training.models.model import load as load_model
from training.record.tracking import Tracking

POLL_MS = 50
READ_AT_ONCE = 4096

log = logging.getLogger("trainer")


@dataclass(frozen=True)
class Pace:
    """When deltas and bases are written, and what is kept."""

    sync_every_ms: int
    base_every: int = 60
    keep_bases: int = 3
    digest: bool = False
    keep_lineages: int = 5


class Gauges:
    """What /metrics says of the trainer."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.examples = Counter("minutehand_trainer_examples", "Examples learned by this process", registry=r)
        self.deltas = Counter("minutehand_trainer_deltas", "Deltas written by this process", registry=r)
        self.errors = Counter("minutehand_trainer_errors", "Failed writes and unreachable brokers", registry=r)
        self.dead = Gauge("minutehand_trainer_dead_examples", "Lines put into examples.dead", registry=r)
        self.lag = Gauge("minutehand_trainer_lag_records", "Records of the topic not read yet", registry=r)
        self.learned_until = Gauge("minutehand_trainer_learned_until_ms", "Event time that is learned", registry=r)
        self.committed_until = Gauge("minutehand_trainer_committed_until_ms", "Event time in the log", registry=r)
        self.uncommitted = Gauge("minutehand_trainer_uncommitted_examples", "Learned, not in the log yet", registry=r)
        self.seq = Gauge("minutehand_trainer_seq", "Newest delta of the lineage", registry=r)
        self.rows = Gauge("minutehand_trainer_delta_rows", "Rows of the newest delta", registry=r)
        self.auc = Gauge("minutehand_trainer_auc", "Test-then-train AUC of the newest delta", registry=r)
        self.table_rows = Gauge("minutehand_trainer_table_rows", "Rows of a table", ["table"], registry=r)
        self.table_bytes = Gauge("minutehand_trainer_table_bytes", "Memory its rows fill", ["table"], registry=r)
        self.reserved = Gauge("minutehand_trainer_table_reserved_bytes", "Memory it holds", ["table"], registry=r)
        self.expired = Counter("minutehand_trainer_expired_rows", "Rows that expired in this process", registry=r)
        self.rate = Gauge("minutehand_trainer_examples_per_second", "Examples learned, last sync", registry=r)


class Trainer:
    """One lineage, one writer, one step at a time; files are written by threads beside it."""

    def __init__(
        self, state: State, writer: Writer, feed: Feed, pace: Pace, tracking: Tracking, gauges: Gauges
    ) -> None:
        self.state, self.writer, self.feed, self.pace = state, writer, feed, pace
        self.tracking, self.gauges = tracking, gauges
        self._buffer: list[Batch] = []
        self._buffered = 0
        self._learned_to_ms = -1  # newest event time among what was learned
        self._writes = ThreadPoolExecutor(1, "delta")
        self._bases = ThreadPoolExecutor(1, "base")  # its own: a base takes longer than a delta may wait
        self._writing: tuple[Cut, Future[Manifest]] | None = None
        self._based: Future[Manifest | None] | None = None
        self._next_cut = time.monotonic() + pace.sync_every_ms / 1000
        self._cut_at = self._measured = time.monotonic()

    def run(self, stopping: threading.Event, over: Callable[[], bool]) -> None:
        """Until `stopping` is set or it is over; what was read is then learned and committed."""
        while not stopping.is_set() and not over():
            self.turn()
        self.finish()

    def turn(self) -> None:
        """Read, step, and cut when it is time."""
        wait_s = max(0.0, self._next_cut - time.monotonic())
        self._read(self.feed.poll(min(POLL_MS, int(wait_s * 1000)), READ_AT_ONCE))
        while self._buffered >= self.state.learner.settings.batch:
            self._step()
        self._settle()
        if time.monotonic() >= self._measured + 1:
            self._measure()
        if time.monotonic() >= self._next_cut and self._writing is None:
            self._cut()
            every = self.pace.sync_every_ms / 1000
            # The next full interval: after a slow write the pace goes on, it is not made up for.
            self._next_cut += every * (1 + (time.monotonic() - self._next_cut) // every)

    def finish(self) -> None:
        """A last delta, and the end of the threads."""
        self._settle(wait=True)
        self._cut()
        self._settle(wait=True)
        self._writes.shutdown()
        self._bases.shutdown()

    def _read(self, batches: list[Batch]) -> None:
        for batch in batches:
            if batch.size:
                self._buffer.append(batch)
                self._buffered += batch.size

    def _step(self) -> None:
        """Learn what is buffered, all but what does not fill a batch."""
        batch, size = concat(self._buffer), self.state.learner.settings.batch
        whole = batch.size if batch.size < size else batch.size // size * size
        self.state.learn(batch.slice(0, whole))
        self._learned_to_ms = max(self._learned_to_ms, int(batch.event_ms[:whole].max()))
        self.gauges.examples.inc(whole)
        rest = batch.slice(whole, batch.size)
        self._buffer, self._buffered = [rest] if rest.size else [], rest.size

    def _measure(self) -> None:
        self._measured = time.monotonic()
        self.gauges.learned_until.set(self.state.learned_until_ms)
        being_written = self._writing[0].metrics["examples"] if self._writing else 0
        self.gauges.uncommitted.set(self.state.examples + self._buffered + being_written)
        self.gauges.dead.set(self.feed.dead)
        self.gauges.lag.set(self.feed.lag() + self._buffered)
        for name, table in self.state.learner.tables.items():
            stats = table.stats()
            self.gauges.table_rows.labels(name).set(stats["size"])
            self.gauges.table_bytes.labels(name).set(4 * (table.dim + table.slot_floats) * stats["size"])
            self.gauges.reserved.labels(name).set(stats["bytes"])
        self._publish()

    def _publish(self) -> None:
        """A base that serving.publish asked for, as soon as the deltas it is to hold are there."""
        try:
            wanted, log_ = Publication.read(self.writer.log), self.writer.log
            if wanted is None or wanted.lineage != self.writer.lineage or self._based is not None:
                return
            if log_.seqs(wanted.lineage, "base")[-1] < wanted.seq <= self._seq:
                self._based = self._bases.submit(self._compact)
        except LogError as e:
            self.gauges.errors.inc()
            log.error("%s", e)

    def _cut(self) -> None:
        """Learn the rest, so that positions and what is learned are of one moment; then hand the cut to its thread."""
        while self._buffered:
            self._step()
        self.state.learned_until_ms = max(self.state.learned_until_ms, self.feed.read_until_ms())
        head = self.writer.head
        # Without events no delta, but one that closes: it says that learned_until has passed all that was learned.
        closing = head is not None and head.learned_until_ms < self._learned_to_ms <= self.state.learned_until_ms
        self.gauges.expired.inc(self.state.expiry.end())
        if not self.state.examples and not closing and not self.state.expiry.waiting():
            self.state.expire()  # event time goes on without examples
            return
        now = time.monotonic()
        self.gauges.rate.set(self.state.examples / max(now - self._cut_at, 1e-3))
        self._cut_at = now
        cut = self.state.cut(self.feed.positions(), digest=self.pace.digest)
        self._writing = cut, self._writes.submit(self.writer.delta, cut)
        self.state.expire()

    def _settle(self, wait: bool = False) -> None:
        """What the threads have done since the last look."""
        if self._writing is not None and (wait or self._writing[1].done()):
            (cut, written), self._writing = self._writing, None
            try:
                self._committed(cut, written.result())
            except (OSError, LogError) as e:
                self.state.failed(cut)
                self.gauges.errors.inc()
                log.error("delta %d was not written: %s; tried again at the next sync", self._seq + 1, e)
        if self._based is not None and (wait or self._based.done()):
            based, self._based = self._based, None
            try:
                if (base := based.result()) is not None:
                    log.info("%s: a new base, %.1f MB", base.name, base.bytes / 1e6)
                    self.tracking.base(base)
            except (OSError, LogError) as e:
                self.gauges.errors.inc()
                log.error("no new base: %s", e)

    @property
    def _seq(self) -> int:
        return self.writer.head.seq if self.writer.head else 0

    def _committed(self, cut: Cut, manifest: Manifest) -> None:
        self.state.committed(cut)
        rows = sum(t.rows for t in manifest.tables.values())
        log.info(
            "%s: %d examples, %d rows, %d kB", manifest.name, cut.metrics["examples"], rows, manifest.bytes // 1000
        )
        self.gauges.deltas.inc()
        self.gauges.seq.set(manifest.seq)
        self.gauges.rows.set(rows)
        self.gauges.committed_until.set(manifest.learned_until_ms)
        if "auc" in manifest.metrics:
            self.gauges.auc.set(manifest.metrics["auc"])
        self.tracking.delta(manifest)
        if manifest.seq % self.pace.base_every == 0 and self._based is None:
            self._based = self._bases.submit(self._compact)

    def _compact(self) -> Manifest | None:
        base = compact(self.writer.log, self.writer)
        self.writer.prune(self.pace.keep_bases)
        prune_lineages(self.writer.log, self.pace.keep_lineages)
        return base


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    _say_plainly()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    gauges = Gauges()
    health = Health(args.port, gauges.registry)
    try:
        code = _run(args, stopping, gauges, health)
    except (ValueError, LogError, ForeignTopic) as e:
        log.error("%s", e)
        return 2
    except OffsetOutOfRangeError as e:
        log.error("a committed position is no longer in the topic (retention?): %s; begin a new lineage", e)
        return 2
    finally:
        health.close()
    if code is None:  # the same process begins anew, with nothing left of the old lineage: its locks are let go by then
        os.execv(
            sys.executable, [sys.executable, "-m", "training.learn.online", *(sys.argv[1:] if argv is None else argv)]
        )
    return code


def _run(args: argparse.Namespace, stopping: threading.Event, gauges: Gauges, health: Health) -> int | None:
    """The exit code; None if another lineage is served now, which is to be gone on with."""
    source, delta_log = load(args.source), Log(args.log)
    lineage = args.lineage or delta_log.serving()
    if lineage is None:
        raise LogError(f"{delta_log.path}: serves no lineage yet (python -m training.learn.batch_pass begins one)")
    model = delta_log.manifest(lineage, "base", delta_log.seqs(lineage, "base")[-1]).model
    learner = Learner(load_model(args.model or str(model), source.declaration), Settings(batch=args.batch))
    learner.train(decode([], source.declaration))  # traces the step, seconds that no delta should wait for
    state = State(learner, args.source)
    state.counts_freshness = not args.until_head
    with Writer(delta_log, lineage) as writer:
        last = state.restore(delta_log, lineage)
        log.info("%s: resumed at %s, %d pairs learned", lineage, last.name, state.learned[0])
        gauges.seq.set(last.seq)
        gauges.learned_until.set(last.learned_until_ms)
        gauges.committed_until.set(last.learned_until_ms)
        feed = _connected(args.kafka, state, stopping, gauges, health)
        if feed is None:
            return 0
        pace = Pace(args.sync_every_ms, args.base_every, args.keep_bases, args.digest, args.keep_lineages)
        head, moved = AtHead(feed), Moved(delta_log, lineage, follow=not args.lineage)
        with Tracking(args.mlflow, delta_log, lineage, args.source) as tracking:
            tracking.base(delta_log.manifest(lineage, "base", delta_log.seqs(lineage, "base")[-1]))
            health.reason = ""
            try:
                over = head if args.until_head else moved
                Trainer(state, writer, feed, pace, tracking, gauges).run(stopping, over)
            finally:
                feed.close()
    if args.until_head:
        log.info("%s: %s", lineage, "at the head of the topic" if head.reached else "stopped before the head")
        return 0 if head.reached else 1
    if moved.moved:
        log.info("%s: no longer served, %s is: going on with it", lineage, delta_log.serving())
        return None
    return 0


def _connected(kafka: str, state: State, stopping: threading.Event, gauges: Gauges, health: Health) -> Feed | None:
    """The feed, once a broker answers; None if the process is to stop before."""
    while not stopping.is_set():
        try:
            return Feed(kafka, state.declaration, state.positions)
        except (KafkaError, OSError) as e:
            health.reason = f"waiting for kafka {kafka}: {e}"
            log.info("%s", health.reason)
            gauges.errors.inc()
            stopping.wait(1)
    return None


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "training.learn.online",
        description="Learn from the examples topic as it grows and write a delta each sync.",
        epilog="The log needs a lineage: python -m training.learn.batch_pass --source SOURCE --log LOG begins one.",
    )
    parser.add_argument("--source", required=True, help="kuairand, simulator?seed=7, a module, or a path to a .py file")
    parser.add_argument(
        "--model",
        default="",
        help="a module of training/models and its settings, as in deepfm?dim=8 (default: the lineage's own)",
    )
    parser.add_argument("--log", required=True, type=Path, metavar="DIR", help="the delta log's folder")
    parser.add_argument("--lineage", default="", help="go on with it (default: the one that is served, as it changes)")
    parser.add_argument("--until-head", action="store_true", help="learn what the topic holds, commit, and end")
    parser.add_argument("--kafka", required=True, metavar="H:P", help="the broker's address")
    parser.add_argument("--sync-every-ms", type=int, default=60_000, metavar="N", help="a delta each (default: 60000)")
    parser.add_argument("--base-every", type=int, default=60, metavar="K", help="a base each K deltas (default: 60)")
    parser.add_argument("--keep-bases", type=int, default=3, metavar="N", help="bases kept (default: 3)")
    parser.add_argument("--keep-lineages", type=int, default=5, metavar="N", help="old ones kept (default: 5)")
    parser.add_argument("--digest", action="store_true", help="write the digest of all tables in every delta")
    parser.add_argument("--batch", type=int, default=Settings.batch, help="examples a step (default: %(default)s)")
    parser.add_argument("--mlflow", default="none", metavar="URL", help="where the record is kept (default: none)")
    parser.add_argument("--port", type=int, default=0, help="of /healthz and /metrics on 127.0.0.1 (0: none)")
    args = parser.parse_args(argv)
    for name in ("sync_every_ms", "base_every", "keep_bases", "keep_lineages", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, allowed is 1 or more")
    return args


def _say_plainly() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # says each retry of each connection; we say it once
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
