"""The feature push: counts events of the topics into the profile store, and merges attributes (docs/features.md).

    python -m features.push --source simulator --kafka 127.0.0.1:9092 --to var/features --port 8591

It judges impressions and actions (read_committed, features/profile/judge.py), and merges attributes of users and items
into their rows (features/attributes.py). A message that forgets a user reaches both. About every `push_ms` it commits
what it has read: the counts, the topics' positions, the open impressions and the clock are one transaction of the
store. So a killed process continues there, and each event is counted once. At each start it writes what the batch views
lack, and at the first one it counts the source's history. With MINUTEHAND_PROFILES in the environment, Redis gets the
profiles too. On SIGTERM it makes a last commit and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from common import process
from features.adds import AddLog
from features.attributes import Attributes
from features.batch_views import refresh
from features.online import ARRIVED, NOW, POPULAR, PROFILES
from features.popular import Popular
from features.profile.judge import Judge
from features.profile.replica import Replica
from features.profile.store import Profiles
from features.profile.transaction import Adds
from features.store import Features
from streaming.contract.contract import Contract
from streaming.contract.schema import BadMessage
from streaming.event_time import EventTime
from streaming.reader import Reader
from streaming.source import Exposure, load
from streaming.topics import ACTIONS, FORGET, IMPRESSIONS, ITEMS, USERS

COUNTED, UPSERTS = (IMPRESSIONS, ACTIONS), (ITEMS, USERS)
READ_AT_ONCE = 4096
PUSH_MS = 800
PATIENCE_MS = 100
"""So long the broker gathers events for it: each answer costs both of them. An event is visible after PUSH_MS, this,
and the commit itself."""
MOST_EVENTS = 20_000
"""So many events are committed at once, before `push_ms` has passed."""
CLOCK, FORGETTING = "clock", "forgetting"
"""Notes of the profile store: the judge's clock, and the files of the log that may hold adds of forgotten profiles."""

log = process.logger("features")


class Gauges:
    """The metrics of the push."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        name = "minutehand_features_"
        self.rows = Counter(name + "rows", "Rows of attributes written by this process", ["view"], registry=r)
        self.adds = Counter(name + "adds", "Counts added to profiles by this process", registry=r)
        self.errors = Counter(name + "errors", "Failed pushes and unreachable brokers", registry=r)
        self.counted = Gauge(name + "counted", "Events that count", registry=r)
        self.ignored = Gauge(name + "ignored", "Events that do not count: late, repeated, past the window", registry=r)
        self.lag = Gauge(name + "lag_records", "Records of the topics not read yet", registry=r)
        self.clock = Gauge(name + "event_ms", "Event time of the last commit", registry=r)
        self.push_s = Gauge(name + "push_seconds", "How long the last commit took", registry=r)


class Counts:
    """What a feature folder holds of the counted events: the profile store, and the log of its adds.

    `forgetting`: the files of the log that may still hold adds of forgotten profiles.
    """

    def __init__(self, store: Features) -> None:
        self._store, self._log = store, AddLog(store.folder, store.plan.slots)
        address, slots = os.environ.get(PROFILES, ""), store.plan.slots
        self._profiles = Profiles(store.folder, slots, writes=True, outbox=bool(address))
        notes = (NOW, ARRIVED, POPULAR)
        self._replica = Replica(address, self._profiles, slots, notes) if address else None
        self._popular: Popular | None = None
        self.forgetting: list[str] = json.loads(self._profiles.noted(FORGETTING) or b"[]")

    def __enter__(self) -> Counts:
        return self

    def __exit__(self, *_: object) -> None:
        self._profiles.close()

    def committed_ms(self) -> int:
        """The wall time at which the last commit became readable; -1 before the first one."""
        return int(self._profiles.noted(ARRIVED) or -1)

    def restore(self, judge: Judge) -> dict[str, Any]:
        """Lets a new judge continue from the last commit. Returns the positions of the topics."""
        self._log.repair(self.committed_ms())
        self._popular = None
        if clock := self._profiles.noted(CLOCK):
            judge.restore(clock, self._profiles.pending())
        return self._profiles.positions()

    def commit(self, judge: Judge, positions: Mapping[str, Any], forgets: Sequence[tuple[int, int]] = ()) -> int:
        """Makes what was judged since the last commit readable and durable, with the positions. Returns the adds.

        `forgets`: users that are forgotten, each with the time up to which.
        """
        changes = judge.take()
        with ExitStack() as behind:  # the folder's lock is released when the transaction is readable
            with self._profiles.writing() as commit:
                commit.add(changes.adds)
                for user_id, at_ms in forgets:
                    commit.forget("user", user_id, at_ms)
                forgetting = self._log.names() if forgets else self.forgetting
                commit.note(FORGETTING, json.dumps(forgetting).encode())
                commit.pend(changes.pending)
                commit.settle(changes.closed_ms)
                commit.positions(positions)
                adds = changes.adds
                adds = adds.where(~self._profiles.tombstones.cover(adds.slot, adds.profile, adds.ts_ms))
                commit.flush()  # readers wait from here on
                arrived_ms = behind.enter_context(self._store.arriving())
                self._log.write(arrived_ms, judge.now_ms, adds)
                for name, data in ((CLOCK, changes.clock), (NOW, b"%d" % judge.now_ms), (ARRIVED, b"%d" % arrived_ms)):
                    commit.note(name, data)
                commit.note(POPULAR, self._most(changes.adds, judge.now_ms))
        self.forgetting = forgetting
        self.publish()
        return len(changes.adds.slot)

    def publish(self) -> None:
        """Gives Redis what it lacks of the commits so far, if the profiles are there too."""
        if self._replica is not None:
            self._replica.publish()

    def _most(self, adds: Adds, now_ms: int) -> bytes:
        """The items that were shown most, with those of a commit. After a start they are counted from the log."""
        slots = self._store.plan.slots.slots
        place = next((k for k, slot in enumerate(slots) if slot.entity == "item" and not slot.by), -1)
        if self._popular is None:
            self._popular = Popular()
            self._popular.add(*self._log.shown(place, self.committed_ms()))
        shown = adds.where((adds.slot == place) & (adds.action == 0))
        self._popular.add(shown.profile, shown.ts_ms, shown.count.astype(np.int64))
        return self._popular.lists(now_ms)

    def compact(self, judge: Judge) -> bool:
        """Compacts for a moment. Returns whether more is to do."""
        if self.forgetting:
            self._forget()
        else:
            self._log.compact()
        return judge.now_ms >= 0 and self._profiles.compact(judge.now_ms)

    def _forget(self) -> None:
        """Takes the adds of forgotten profiles out of one more file of the log."""
        *left, name = self.forgetting
        self._log.blank(name, self._profiles.tombstones.cover)
        with self._profiles.writing() as commit:
            commit.note(FORGETTING, json.dumps(left).encode())
        self.forgetting = left


class Push:
    """Reads and judges events, and commits every `push_ms`."""

    def __init__(
        self, store: Features, counts: Counts, reader: Reader, judge: Judge, event_time: EventTime, push_ms: int,
        gauges: Gauges,
    ) -> None:  # fmt: skip
        self._store, self._counts, self._reader, self._judge = store, counts, reader, judge
        self._push_s, self._gauges, self._event_time = push_ms / 1000, gauges, event_time
        self._attributes = Attributes(store)
        self._contract = Contract(store.plan.declaration, store.plan.views)
        self._partitions = sum(len(reader.partitions(topic)) for topic in COUNTED)
        self._next_commit = time.monotonic()
        self._forgets: list[tuple[int, int]] = []
        self._read = 0

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.turn()
        self.commit()

    def turn(self) -> None:
        wait = max(0.0, self._next_commit - time.monotonic())
        for (topic, partition), records in self._reader.poll(round(1000 * min(wait, 0.2)), READ_AT_ONCE).items():
            self._read += len(records)
            for record in records:
                if topic in UPSERTS:
                    self.take_upsert(topic, partition, record)
                else:
                    self.take(topic, partition, record.timestamp, record.value)
        now = time.monotonic()
        if now >= self._next_commit or self._read >= MOST_EVENTS:
            self._next_commit = now + self._push_s
            if self._read:
                self.commit()
            else:
                self._counts.publish()
            self._gauges.lag.set(self._reader.lag())

    def commit(self) -> None:
        begun = time.monotonic()
        for view, rows in self._attributes.push().items():  # no position may pass a message that is in no row
            self._gauges.rows.labels(view).inc(rows)
        self._gauges.adds.inc(self._counts.commit(self._judge, self._reader.positions(), self._forgets))
        self._forgets = []
        self._read = 0
        self._gauges.push_s.set(time.monotonic() - begun)
        self._gauges.counted.set(self._judge.counted)
        self._gauges.ignored.set(self._judge.ignored)
        self._gauges.clock.set(self._judge.now_ms)
        self._counts.compact(self._judge)
        self._store.offline.compact()

    def take(self, topic: str, partition: int, stamp_ms: int, message: bytes | None) -> None:
        """Judges one record, unless the join refuses it. (The join sends its dead letter.)"""
        try:
            event = self._contract.read(topic, message)
        except BadMessage:
            event = {}
        time_ms = self._event_time.of(stamp_ms, event)
        if time_ms is not None:
            self._judge.clock(topic, partition, time_ms, self._partitions)
        if "heartbeat_ms" in event:
            return
        newest_ms = stamp_ms if time_ms is not None else self._judge.time_of(topic, partition)
        if not event or newest_ms is not None and self._event_time.is_future(event["ts_ms"], newest_ms):
            self._judge.ignored += 1
        elif topic == IMPRESSIONS:
            features = event.get("features", {})
            self._judge.shown(event["impression_id"], event["user_id"], event["item_id"], event["ts_ms"], features)
        else:
            self._judge.action(event["impression_id"], event["action"], event["ts_ms"])

    def take_upsert(self, topic: str, partition: int, record: Any) -> None:
        """Takes a message of attributes, or sends its dead letter: nobody else reads this topic."""
        try:
            event = self._contract.read(topic, record.value)
            latest_ms = record.timestamp + self._event_time.max_disorder_ms
            name = FORGET if FORGET in event else "ts_ms"
            if event[name] > latest_ms:
                raise BadMessage("future", f"{name} is {event[name]}, allowed is up to {latest_ms}")
        except BadMessage as e:
            self._reader.bury(topic, partition, record.offset, record.value or b"", e.kind, str(e))
        else:
            self._attributes.take(topic, event)
            if FORGET in event:
                self._forgets.append((event["user_id"], event[FORGET]))


def begin(store: Features, counts: Counts, judge: Judge, history: Iterable[Exposure]) -> None:
    """Fills the store before the first event: the batch views, and the counts of the source's history."""
    refresh(store)
    judge.seed(history)
    adds = counts.commit(judge, {})
    log.info("history: %d events, %d adds to profiles", judge.counted, adds)


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("features.push", __doc__)
    add, duration = parser.add_argument, process.at_least(1)
    parser.shared("source", "kafka")
    add("--to", required=True, type=Path, metavar="DIR", help="the feature folder; made if need be")
    add("--push-ms", type=duration, default=PUSH_MS, help="the time between two commits (default: %(default)s)")
    EventTime.arguments(parser)
    parser.shared("port")
    args = parser.parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    gauges, event_time = Gauges(), EventTime.of_arguments(args)
    source, store = load(args.source), Features(args.to, args.source)

    def new_judge() -> Judge:
        return Judge(store.plan.slots, source.declaration.window_ms, event_time.max_disorder_ms)

    with Counts(store) as counts:
        store.repair(counts.committed_ms())
        if counts.committed_ms() < 0:
            begin(store, counts, new_judge(), source.history())
        else:
            refresh(store)
        judge = new_judge()

        def connect() -> Reader:
            nonlocal judge
            judge = new_judge()
            topics = (*COUNTED, *UPSERTS)
            return Reader(
                args.kafka, topics, counts.restore(judge), f"{args.to}'s", "begin a new folder (--to)", PATIENCE_MS
            )

        def count(reader: Reader) -> None:
            Push(store, counts, reader, judge, event_time, args.push_ms, gauges).run(service.stopping)

        with process.Service(args.port, gauges.registry, gauges.errors) as service:
            service.follow(args.kafka, connect, count)


if __name__ == "__main__":
    sys.exit(main())
