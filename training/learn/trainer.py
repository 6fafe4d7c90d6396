"""The trainer of one lineage: it reads examples, takes steps, and writes a delta each sync, in a thread beside it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from kafka.errors import KafkaError
from prometheus_client import CollectorRegistry, Counter, Gauge

from common import process
from common.health import Health
from delta_log.compaction import compact
from delta_log.manifest import LogError, Manifest
from delta_log.publication import Publication
from delta_log.writer import Cut, Writer, prune_lineages
from streaming.example import Batch, concat
from training.learn.feed import Feed
from training.learn.state import State
from training.record.tracking import Tracking

POLL_MS = 50
READ_AT_ONCE = 4096
RETRY_S = 5.0
"""After a cut that Kafka held up. A cut waits about as long for Kafka, so it learns for half of the time."""

log = process.logger("trainer")


@dataclass(frozen=True)
class Pace:
    """How often deltas and bases are written, and how many bases and lineages stay."""

    sync_every_ms: int
    base_every: int = 60
    keep_bases: int = 3
    digest: bool = False
    keep_lineages: int = 5


class Gauges:
    """The metrics of the process."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.examples = Counter("minutehand_trainer_examples", "Examples learned by this process", registry=r)
        self.deltas = Counter("minutehand_trainer_deltas", "Deltas written by this process", registry=r)
        self.errors = Counter("minutehand_trainer_errors", "Failed writes and unreachable brokers", registry=r)
        self.dead = Gauge("minutehand_trainer_dead_examples", "Lines put into examples.dead", registry=r)
        self.lag = Gauge("minutehand_trainer_lag_records", "Records not read yet; NaN if unknown", registry=r)
        self.lag.set(math.nan)
        self.learned_until = Gauge("minutehand_trainer_learned_until_ms", "Event time that is learned", registry=r)
        self.committed_until = Gauge("minutehand_trainer_committed_until_ms", "Event time in the log", registry=r)
        self.uncommitted = Gauge("minutehand_trainer_uncommitted_examples", "Learned, not in the log yet", registry=r)
        self.seq = Gauge("minutehand_trainer_seq", "Newest delta of the lineage", registry=r)
        self.rows = Gauge("minutehand_trainer_delta_rows", "Rows of the newest delta", registry=r)
        self.auc = Gauge("minutehand_trainer_auc", "Test-then-train AUC of the newest delta", registry=r)
        self.table_rows = Gauge("minutehand_trainer_table_rows", "Rows of a table", ["table"], registry=r)
        held = (
            "Memory of a table: of all rows it ever had at a time. It never falls; rows that left make room for others"
        )
        self.table_bytes = Gauge("minutehand_trainer_table_bytes", held, ["table"], registry=r)
        self.expired = Counter("minutehand_trainer_expired_rows", "Rows that expired in this process", registry=r)
        self.rate = Gauge("minutehand_trainer_examples_per_second", "Examples learned, last sync", registry=r)


class Trainer:
    """Learns one lineage, one step at a time. `health` shows why no delta can be written, if that is so."""

    def __init__(
        self, state: State, writer: Writer, feed: Feed, pace: Pace, tracking: Tracking, gauges: Gauges, health: Health
    ) -> None:
        self.state, self.writer, self.feed, self.pace = state, writer, feed, pace
        self.tracking, self.gauges, self.health = tracking, gauges, health
        self._buffer: list[Batch] = []
        self._buffered = 0
        self._alarms: set[str] = set()
        self._learned_to_ms = -1  # the newest event time that was learned
        self._writes = ThreadPoolExecutor(1, "delta")
        self._bases = ThreadPoolExecutor(1, "base")  # a thread of its own: a delta cannot wait for a base
        self._writing: tuple[Cut, Future[Manifest]] | None = None
        self._based: Future[Manifest | None] | None = None
        self._next_cut = time.monotonic() + pace.sync_every_ms / 1000
        self._cut_at = self._measured = time.monotonic()

    def run(self, stopping: threading.Event, over: Callable[[Feed], bool]) -> bool:
        """Learns until `stopping` is set or it is over. Returns whether the log then holds all that was read.

        When this returns or raises, no thread writes any more: the caller may release the lineage's lock.
        """
        try:
            while not stopping.is_set() and not over(self.feed):
                self.turn()
            return self._finish()
        finally:
            self._writes.shutdown()
            self._bases.shutdown()

    def turn(self) -> None:
        """Reads, takes steps, and makes the cut when it is due."""
        wait_s = max(0.0, self._next_cut - time.monotonic())
        batches = [b for b in self.feed.poll(min(POLL_MS, int(wait_s * 1000)), READ_AT_ONCE) if b.size]
        self._buffer += batches
        self._buffered += sum(batch.size for batch in batches)
        while self._buffered >= self.state.learner.settings.batch:
            self._step()
        self._settle()
        if time.monotonic() >= self._measured + 1:
            self._measure()
        if time.monotonic() >= self._next_cut and self._writing is None:
            self._cut()
            every, late_s = self.pace.sync_every_ms / 1000, time.monotonic() - self._next_cut
            if late_s >= 0:  # the next full interval: cuts that a slow write held up are left out
                self._next_cut += every * (1 + late_s // every)

    def _finish(self) -> bool:
        """Writes a last delta. Returns whether the log holds all that was read."""
        self._settle(wait=True)
        self._cut()
        self._settle(wait=True)
        if self.state.examples:
            log.error("no last delta: the next start learns %d examples again", self.state.examples)
        return not self.state.examples

    def _step(self) -> None:
        """Learns the buffered examples, but for a rest that does not fill a batch."""
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
        self.gauges.dead.set(self.feed.reader.dead)
        self.gauges.lag.set(self.feed.reader.lag() + self._buffered)
        for name, table in self.state.learner.tables.items():
            stats = table.stats()
            self.gauges.table_rows.labels(name).set(stats["size"])
            self.gauges.table_bytes.labels(name).set(stats["bytes"])
        self._publish()

    def _publish(self) -> None:
        """Begins the base that serving.publish asked for, once the log has the deltas that it is to hold."""
        try:
            wanted, delta_log = Publication.read(self.writer.log), self.writer.log
            if wanted is None or wanted.lineage != self.writer.lineage or self._based is not None:
                return
            if delta_log.seqs(wanted.lineage, "base")[-1] < wanted.seq <= self._seq:
                self._based = self._bases.submit(self._compact)
        except LogError as e:
            self.gauges.errors.inc()
            log.error("%s", e)

    def _cut(self) -> None:
        """Learns the buffered rest, so that state and positions fit together; then begins to write a delta."""
        while self._buffered:
            self._step()
        self.state.learned_until_ms = max(self.state.learned_until_ms, self.feed.read_until_ms())
        head = self.writer.head
        # No examples, no delta; but one, when event time has passed all that was learned: it tells the readers so.
        closing = head is not None and head.learned_until_ms < self._learned_to_ms <= self.state.learned_until_ms
        self.gauges.expired.inc(self.state.expiry.end())
        if self.state.examples or closing or self.state.expiry.waiting():
            self._write()
        self.state.expire()  # event time moves on without examples, too

    def _write(self) -> None:
        """Copies what changed, and hands it to the thread that writes deltas.

        It writes nothing while Kafka has not acknowledged a dead letter: the positions are past its line.
        """
        try:
            positions = self.feed.positions()
        except KafkaError as e:
            self._next_cut = time.monotonic() + RETRY_S
            self._failed(str(e), f"each {RETRY_S:.0f} s")
            return
        now = time.monotonic()
        self.gauges.rate.set(self.state.examples / max(now - self._cut_at, 1e-3))
        self._cut_at = now
        cut = self.state.cut(positions, digest=self.pace.digest)
        self._writing = cut, self._writes.submit(self.writer.delta, cut)

    def _settle(self, wait: bool = False) -> None:
        """Takes the results of the threads that write; with `wait` it waits for them."""
        if self._writing is not None and (wait or self._writing[1].done()):
            (cut, written), self._writing = self._writing, None
            try:
                self._committed(cut, written.result())
            except (OSError, LogError) as e:
                self.state.failed(cut)
                self._failed(str(e), "at the next sync")
        if self._based is not None and (wait or self._based.done()):
            based, self._based = self._based, None
            try:
                if (base := based.result()) is not None:
                    log.info("%s: a new base, %.1f MB", base.name, base.bytes / 1e6)
                    self.tracking.add(base)
            except (OSError, LogError) as e:
                self.gauges.errors.inc()
                log.error("no new base: %s", e)

    def _failed(self, error: str, again: str) -> None:
        """Reports, once, why no delta can be written. /healthz does so until the next one is."""
        self.gauges.errors.inc()
        before, self.health.reason = self.health.reason, f"no delta can be written: {error}"
        if self.health.reason != before:
            log.error("%s; tried again %s", self.health.reason, again)

    @property
    def _seq(self) -> int:
        return self.writer.head.seq if self.writer.head else 0

    def _committed(self, cut: Cut, manifest: Manifest) -> None:
        self.state.committed(cut)
        self.health.reason = ""
        rows = sum(t.rows for t in manifest.tables.values())
        examples, kilobytes = cut.metrics["examples"], manifest.bytes // 1000
        log.info("%s: %d examples, %d rows, %d kB", manifest.name, examples, rows, kilobytes)
        self.gauges.deltas.inc()
        self.gauges.seq.set(manifest.seq)
        self.gauges.rows.set(rows)
        self.gauges.committed_until.set(manifest.learned_until_ms)
        if "auc" in manifest.metrics:
            self.gauges.auc.set(manifest.metrics["auc"])
        self._warn(manifest)
        self.tracking.add(manifest)
        if manifest.seq % self.pace.base_every == 0 and self._based is None:
            self._based = self._bases.submit(self._compact)

    def _warn(self, manifest: Manifest) -> None:
        """Logs what the model finds wrong, and again when another thing is."""
        model = self.state.learner.model
        observed = {name: manifest.metrics[name] for name in model.observed if name in manifest.metrics}
        alarms = model.alarms(observed) if observed else []
        for text in alarms:
            if text.partition(":")[0] not in self._alarms:
                log.warning("%s: %s", manifest.name, text)
        self._alarms = {text.partition(":")[0] for text in alarms}

    def _compact(self) -> Manifest | None:
        base = compact(self.writer.log, self.writer)
        self.writer.prune(self.pace.keep_bases)
        prune_lineages(self.writer.log, self.pace.keep_lineages)
        return base
