"""The feature push: recent activity and item counters from the topics into the feature store (docs/features.md).

    python -m features.push --source simulator --kafka 127.0.0.1:9092 --to var/features --port 8591

It counts impressions and judged actions (read_committed), and merges attributes of users and items into their rows
(features/attributes.py). Every `push_ms` it pushes the rows that changed, in one step for readers. At each start it
writes what the batch views lack, and at the first one it counts the source's history. It commits its state together
with the topics' positions, so a killed process continues there, and each event is counted once. On SIGTERM it makes a
last commit and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from common import process
from common.disk import hold, replace
from features.attributes import BATCH_ROWS, Attributes
from features.batch_views import refresh
from features.counters import Counters, Table
from features.store import Features, now_ms
from streaming.contract.contract import Contract
from streaming.contract.schema import BadMessage
from streaming.event_time import EventTime
from streaming.reader import Reader
from streaming.source import Source, load
from streaming.topics import ACTIONS, IMPRESSIONS, ITEMS, USERS

COUNTED, UPSERTS = (IMPRESSIONS, ACTIONS), (ITEMS, USERS)
READ_AT_ONCE = 4096

log = process.logger("features")


class State:
    """The counters, and the positions up to which they count, in one file. Held by one process a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.json"
        self._lock = hold(folder / "push.lock", "a feature folder has one pusher")

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def load(self) -> dict[str, Any]:
        """What `save` wrote; empty before the first call."""
        return json.loads(self.path.read_bytes()) if self.path.exists() else {}

    def save(self, state: Mapping[str, Any]) -> None:
        replace(self.path, json.dumps(state, separators=(",", ":")).encode())


class Gauges:
    """The metrics of the push."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        name = "minutehand_features_"
        self.rows = Counter(name + "rows", "Rows pushed by this process", ["view"], registry=r)
        self.errors = Counter(name + "errors", "Failed pushes and unreachable brokers", registry=r)
        self.counted = Gauge(name + "counted", "Events in the counters", registry=r)
        self.ignored = Gauge(name + "ignored", "Events that do not count: late, repeated, past the window", registry=r)
        self.lag = Gauge(name + "lag_records", "Records of the topics not read yet", registry=r)
        self.clock = Gauge(name + "event_ms", "Event time of the counters", registry=r)
        self.push_s = Gauge(name + "push_seconds", "How long the last push took", registry=r)


class Push:
    """Reads and counts events, pushes every `push_ms`, commits every `commit_ms`."""

    def __init__(
        self, store: Features, state: State, reader: Reader, counters: Counters, event_time: EventTime, push_ms: int,
        commit_ms: int, gauges: Gauges,
    ) -> None:  # fmt: skip
        self._store, self._state, self._reader, self._counters = store, state, reader, counters
        self._push_s, self._commit_s, self._gauges = push_ms / 1000, commit_ms / 1000, gauges
        self._event_time = event_time
        self._attributes = Attributes(store)
        self._by, self._contract = store.plan.views.by, Contract(store.plan.declaration, store.plan.views)
        self._partitions = sum(len(reader.partitions(topic)) for topic in COUNTED)
        self._next_push = self._next_commit = time.monotonic()
        self._read = True

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.turn()
        self.push()
        self.commit()

    def turn(self) -> None:
        wait = max(0.0, self._next_push - time.monotonic())
        for (topic, partition), records in self._reader.poll(round(1000 * min(wait, 0.2)), READ_AT_ONCE).items():
            self._read = True
            for record in records:
                if topic in UPSERTS:
                    self.take_upsert(topic, partition, record)
                else:
                    self.take(topic, partition, record.timestamp, record.value)
        now = time.monotonic()
        if now >= self._next_push:
            self._next_push = now + self._push_s
            self.push()
        if now >= self._next_commit and self._read:
            self._next_commit = now + self._commit_s
            self.commit()

    def push(self) -> None:
        begun = time.monotonic()
        activity, counters = self._counters.take()
        pushed = {**push(self._store, activity, counters), **self._attributes.push()}
        self._count_rows(pushed)
        if pushed:
            self._gauges.push_s.set(time.monotonic() - begun)
        self._gauges.counted.set(self._counters.counted)
        self._gauges.ignored.set(self._counters.ignored)
        self._gauges.clock.set(self._counters.now_ms)
        self._gauges.lag.set(self._reader.lag())

    def _count_rows(self, pushed: Mapping[str, int]) -> None:
        for view, rows in pushed.items():
            self._gauges.rows.labels(view).inc(rows)

    def commit(self) -> None:
        self._count_rows(self._attributes.push())  # no position may pass a message that is in no row
        self._state.save(committed(self._counters, self._reader.positions()))
        self._store.offline.compact()
        self._read = False

    def take(self, topic: str, partition: int, stamp_ms: int, message: bytes | None) -> None:
        """Counts one record, unless the join refuses it. (The join sends its dead letter.)"""
        try:
            event = self._contract.read(topic, message)
        except BadMessage:
            event = {}
        time_ms = self._event_time.of(stamp_ms, event)
        if time_ms is not None:
            self._counters.clock(topic, partition, time_ms, self._partitions)
        if "heartbeat_ms" in event:
            return
        newest_ms = stamp_ms if time_ms is not None else self._counters.time_of(topic, partition)
        if not event or newest_ms is not None and self._event_time.is_future(event["ts_ms"], newest_ms):
            self._counters.ignored += 1
        elif topic == IMPRESSIONS:
            by = event.get("features", {}).get(self._by) if self._by else None
            self._counters.shown(event["impression_id"], event["user_id"], event["item_id"], event["ts_ms"], by)
        else:
            self._counters.action(event["impression_id"], event["action"], event["ts_ms"])

    def take_upsert(self, topic: str, partition: int, record: Any) -> None:
        """Takes a message of attributes, or sends its dead letter: nobody else reads this topic."""
        try:
            event = self._contract.read(topic, record.value)
            latest_ms = record.timestamp + self._event_time.max_disorder_ms
            if event["ts_ms"] > latest_ms:
                raise BadMessage("future", f"ts_ms is {event['ts_ms']}, allowed is up to {latest_ms}")
        except BadMessage as e:
            self._reader.bury(topic, partition, record.offset, record.value or b"", e.kind, str(e))
        else:
            self._attributes.take(topic, event)


def committed(counters: Counters, positions: Mapping[str, Any]) -> dict[str, Any]:
    """The state to commit. Everything that was pushed until now is of events before the positions."""
    return {"counters": counters.state(), "positions": positions, "committed_ms": now_ms()}


def push(store: Features, activity: Table, counters: Table) -> dict[str, int]:
    """Writes the changed rows of both counted views in one step for readers. Returns the number of each view."""
    tables = {}
    for view, table in (("activity", activity), ("counters", counters)):
        if table["key"]:
            tables[view] = {store.plan.key(view): table["key"], **{k: v for k, v in table.items() if k != "key"}}
    if tables:
        store.write(tables)
    return {view: len(next(iter(table.values()))) for view, table in tables.items()}


def begin(store: Features, source: Source, counters: Counters) -> None:
    """Fills the store before the first event: the batch views, and the counters of the source's history."""
    refresh(store)
    counters.seed(source.history(), store.plan.views.by)
    activity, counted = counters.take()
    for first in range(0, max(len(activity["key"]), len(counted["key"])), BATCH_ROWS):
        part = slice(first, first + BATCH_ROWS)
        push(store, *({name: column[part] for name, column in table.items()} for table in (activity, counted)))
    log.info("history: %d events of %d users and %d items", counters.counted, len(activity["key"]), len(counted["key"]))


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("features.push", __doc__)
    add, duration = parser.add_argument, process.at_least(1)
    parser.shared("source", "kafka")
    add("--to", required=True, type=Path, metavar="DIR", help="the feature folder; made if need be")
    add("--push-ms", type=duration, default=1000, help="the time between two pushes (default: %(default)s)")
    add("--commit-ms", type=duration, default=10_000, help="the time between two commits (default: %(default)s)")
    EventTime.arguments(parser)
    parser.shared("port")
    args = parser.parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    gauges = Gauges()
    with State(args.to) as state:
        source, store = load(args.source), Features(args.to, args.source)
        declaration = source.declaration
        event_time = EventTime.of_arguments(args)
        counters = Counters(declaration.judged, declaration.window_ms, event_time.max_disorder_ms)
        last = state.load()
        store.repair(last.get("committed_ms", 0))
        if last:
            refresh(store)
        else:
            begin(store, source, counters)
            state.save(committed(counters, {}))

        def connect() -> Reader:
            last = state.load()
            pushed = (store.offline.pushed(view, last.get("committed_ms", 0)) for view in ("activity", "counters"))
            counters.restore(last["counters"], *pushed)
            topics = (*COUNTED, *UPSERTS)
            return Reader(args.kafka, topics, last["positions"], f"{args.to}'s", "begin a new folder (--to)")

        def count(reader: Reader) -> None:
            push = Push(store, state, reader, counters, event_time, args.push_ms, args.commit_ms, gauges)
            push.run(service.stopping)

        with process.Service(args.port, gauges.registry, gauges.errors) as service:
            service.follow(args.kafka, connect, count)


if __name__ == "__main__":
    sys.exit(main())
