"""The feature push: recent activity and item counters from the topics into the feature store (docs/features.md).

    python -m features.push --source simulator --kafka 127.0.0.1:9092 --to var/features --port 8591

Counts impressions and judged actions (read_committed), and pushes the rows that changed each `push_ms`, in one step for
readers. At the first start it writes the batch views and counts the source's history. The state is committed with the
topics' positions: a killed process goes on there, and each event is counted once. SIGTERM: a last commit, then exit 0.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from common.health import Health
from features.counters import Counters, Table
from features.store import Features, now_ms
from streaming.contract.contract import BadMessage, Contract
from streaming.source import Source, load
from streaming.topics import ACTIONS, IMPRESSIONS

TOPICS = (IMPRESSIONS, ACTIONS)
READ_AT_ONCE = 4096
BATCH_ROWS = 5000

log = logging.getLogger("features")


class AlreadyPushing(RuntimeError):
    """Another process pushes into this folder."""


class State:
    """The counters and the positions they stand at, in one file that is replaced atomically. One process a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "state.json"
        self._lock = os.open(folder / "push.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AlreadyPushing(f"{folder}: another process pushes into it; allowed is one") from None

    def load(self) -> dict[str, Any] | None:
        """What `save` wrote, None before the first."""
        try:
            found: dict[str, Any] = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        return found

    def save(self, state: Mapping[str, Any]) -> None:
        aside = self.path.with_suffix(".new")
        with aside.open("wb") as file:
            file.write(json.dumps(state, separators=(",", ":")).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path)

    def close(self) -> None:
        os.close(self._lock)


class Gauges:
    """What /metrics says of the push."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        name = "minutehand_features_"
        self.rows = Counter(name + "rows", "Rows pushed by this process", ["view"], registry=r)
        self.errors = Counter(name + "errors", "Failed pushes and unreachable brokers", registry=r)
        self.counted = Gauge(name + "counted", "Events in the counters", registry=r)
        self.ignored = Gauge(name + "ignored", "Events that do not count: late, repeated, past the window", registry=r)
        self.lag = Gauge(name + "lag_records", "Records of the topics not read yet", registry=r)
        self.clock = Gauge(name + "event_ms", "Event time the counters stand at", registry=r)
        self.push_s = Gauge(name + "push_seconds", "How long the last push took", registry=r)


class Push:
    """Reads, counts, pushes each `push_ms`, commits each `commit_ms`."""

    def __init__(
        self, store: Features, state: State, reader: Any, counters: Counters, push_ms: int, commit_ms: int,
        gauges: Gauges,
    ) -> None:  # fmt: skip
        self._store, self._state, self._reader, self._counters = store, state, reader, counters
        self._push_s, self._commit_s, self._gauges = push_ms / 1000, commit_ms / 1000, gauges
        self._by, self._contract = store.plan.views.by, Contract(store.plan.declaration)
        self._partitions = sum(len(reader.partitions(topic)) for topic in TOPICS)
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
                self.take(topic, partition, record.value)
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
        pushed = push(self._store, activity, counters)
        for view, rows in pushed.items():
            self._gauges.rows.labels(view).inc(rows)
        if pushed:
            self._gauges.push_s.set(time.monotonic() - begun)
        self._gauges.counted.set(self._counters.counted)
        self._gauges.ignored.set(self._counters.ignored)
        self._gauges.clock.set(self._counters.now_ms)
        self._gauges.lag.set(self._reader.lag())

    def commit(self) -> None:
        self._state.save(committed(self._counters, self._reader.positions()))
        self._store.compact()
        self._read = False

    def take(self, topic: str, partition: int, message: bytes | None) -> None:
        """Counts one record. A message that breaks the contract is the join's to bury; here it does not count."""
        try:
            event = self._contract.read(topic, message)
        except BadMessage:
            self._counters.ignored += 1
            return
        if "heartbeat_ms" in event:
            self._counters.heartbeat(topic, partition, event["heartbeat_ms"], self._partitions)
        elif topic == IMPRESSIONS:
            by = event.get("features", {}).get(self._by) if self._by else None
            self._counters.shown(event["impression_id"], event["user_id"], event["item_id"], event["ts_ms"], by)
        else:
            self._counters.action(event["impression_id"], event["action"], event["ts_ms"])


def committed(counters: Counters, positions: Mapping[str, Any]) -> dict[str, Any]:
    """What a commit keeps: all that was pushed until now is of events before the positions."""
    return {"counters": counters.state(), "positions": positions, "committed_ms": now_ms()}


def push(store: Features, activity: Table, counters: Table) -> dict[str, int]:
    """Writes the changed rows of both counted views in one step for readers; how many of each view."""
    tables = {}
    for view, table in (("activity", activity), ("counters", counters)):
        if table["key"]:
            tables[view] = {store.plan.key(view): table["key"], **{k: v for k, v in table.items() if k != "key"}}
    if tables:
        store.write(tables)
    return {view: len(next(iter(table.values()))) for view, table in tables.items()}


def begin(store: Features, source: Source, counters: Counters) -> None:
    """What stands before the first event: the batch views, and the counters of the source's history."""
    views = store.plan.views
    for view, read in (("profile", views.users), ("video", views.items)):
        if view not in store.plan.columns:
            continue
        table = read()
        for first in range(0, table.num_rows, BATCH_ROWS):
            store.write({view: table.slice(first, BATCH_ROWS).to_pydict()})
    counters.seed(source.history(), views.by)
    activity, counted = counters.take()
    for first in range(0, max(len(activity["key"]), len(counted["key"])), BATCH_ROWS):
        part = slice(first, first + BATCH_ROWS)
        push(store, *({name: column[part] for name, column in table.items()} for table in (activity, counted)))
    log.info("history: %d events of %d users and %d items", counters.counted, len(activity["key"]), len(counted["key"]))


def main(argv: list[str] | None = None) -> int:
    from kafka.errors import OffsetOutOfRangeError

    from streaming.reader import ForeignTopic

    args = _arguments(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # says each retry of each connection; we say it once
    stopping, gauges = threading.Event(), Gauges()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # until there is something to commit
    health = Health(args.port, gauges.registry)
    try:
        state = State(args.to)
        _run(args, load(args.source), state, stopping, gauges, health)
        state.close()
    except (ValueError, AlreadyPushing, ForeignTopic) as e:
        log.error("%s", e)
        return 2
    except OffsetOutOfRangeError as e:
        log.error("%s: a position is no longer in its topic (retention), events are lost: %s; begin a new folder",
                  args.to, e)  # fmt: skip
        return 2
    finally:
        health.close()
    return 0


def _run(
    args: argparse.Namespace, source: Source, state: State, stopping: threading.Event, gauges: Gauges, health: Health
) -> None:
    from kafka.errors import KafkaError, OffsetOutOfRangeError

    from streaming.reader import Reader

    declaration, store = source.declaration, Features(args.to, args.source)
    counters = Counters(declaration.judged, declaration.window_ms, declaration.max_disorder_ms)
    kept = state.load()
    if kept is None:
        begin(store, source, counters)
        kept = committed(counters, {})
        state.save(kept)
    else:
        counters.restore(kept["counters"])
        store.repair(kept.get("committed_ms", 0))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    wait_s = 0.2
    while not stopping.is_set():
        reader = None
        try:
            reader = Reader(args.kafka, TOPICS, kept["positions"], f"{args.to}: its", "begin a new folder")
            health.reason = ""
            wait_s = 0.2
            Push(store, state, reader, counters, args.push_ms, args.commit_ms, gauges).run(stopping)
        except OffsetOutOfRangeError:
            raise
        except KafkaError as e:
            gauges.errors.inc()
            health.reason = f"no broker: {e}"
            log.warning("no broker at %s (%s): tried again in %.1f s", args.kafka, e, wait_s)
            stopping.wait(wait_s)
            wait_s = min(5.0, 2 * wait_s)
            # Counting goes on from the last commit: what was read after it is read again.
            kept = state.load() or kept
            counters.restore(kept["counters"])
        finally:
            if reader is not None:
                reader.close()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "features.push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", required=True, metavar="S", help="kuairand, simulator?seed=7, a dotted module or a .py file")
    add("--kafka", required=True, metavar="H:P", help="the broker's address")
    add("--to", required=True, type=Path, metavar="DIR", help="the feature folder; made if need be")
    add("--push-ms", type=int, default=1000, help="rows that changed are pushed this often (default: %(default)s)")
    add("--commit-ms", type=int, default=10_000, help="counters and positions are kept this often (%(default)s)")
    add("--port", type=int, default=0, help="health and metrics (default: none)")
    args = parser.parse_args(argv)
    for name in ("push_ms", "commit_ms"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, allowed is > 0")
    return args


if __name__ == "__main__":
    sys.exit(main())
