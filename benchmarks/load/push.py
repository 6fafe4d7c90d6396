"""The feature push under load: the CPU of an event from Kafka to durable, and how soon a reader sees an event."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaProducer

from features.profile.judge import Judge
from features.profile.store import Profiles
from features.push import COUNTED, PATIENCE_MS, PUSH_MS, UPSERTS, Counts, Gauges, Push
from features.store import Features, now_ms
from streaming import topics
from streaming.event_time import MAX_DISORDER_MS, EventTime
from streaming.publisher import action, impression
from streaming.reader import Reader
from streaming.source import load
from tests.support.broker import Broker

SOURCE = "simulator?seed=1&minutes=1&history_minutes=1&viewers=1000&clips=1000"
ACTED = 0.3
"""The share of impressions that one action of the judged task follows."""


def messages(n: int, users: int, items: int, part: str) -> Iterator[tuple[str, bytes]]:
    """Topic and message of n events of now: the simulator's features, with users and items drawn by ourselves."""
    rng = np.random.default_rng(n)
    declaration = load(SOURCE).declaration
    some = [e.features for e, _ in zip(load(SOURCE).live(), range(1000), strict=False)]
    number = 0
    while n > 0:
        user, item, now = int(rng.integers(users)), int(rng.zipf(1.2) % items), now_ms()
        name = f"{part}-{number}"
        event = impression(name, "r", user, item, now, 0, some[number % len(some)], {})
        yield topics.IMPRESSIONS, json.dumps(event).encode()
        if rng.random() < ACTED and n > 1:
            yield topics.ACTIONS, json.dumps(action(name, declaration.judged, now)).encode()
            n -= 1
        n, number = n - 1, number + 1


class Sender:
    """Sends messages, and remembers when, by topic, partition and offset."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5, batch_size=2**17)
        self.sent_s: dict[tuple[str, str], list[float]] = {}
        self._next = 0

    def send(self, topic: str, message: bytes) -> None:
        partition = self._next % topics.PARTITIONS
        self._next += 1
        self.sent_s.setdefault((topic, str(partition)), []).append(time.time())
        self._producer.send(topic, message, partition=partition)

    def flush(self) -> None:
        self._producer.flush()

    def close(self) -> None:
        self._producer.close()


def measure(events: int, users: int, items: int, live_s: int, rate: int) -> dict[str, Any]:
    """A backlog of `events`, then `rate` events/s for `live_s` seconds."""
    with tempfile.TemporaryDirectory(prefix="minutehand-push-") as name, Broker() as broker:
        topics.create(broker.bootstrap)
        sender = Sender(broker.bootstrap)
        for topic, message in messages(events, users, items, "backlog"):
            sender.send(topic, message)
        sender.flush()
        store, event_time = Features(Path(name), SOURCE), EventTime(MAX_DISORDER_MS)
        judge = Judge(store.plan.slots, store.plan.declaration.window_ms, MAX_DISORDER_MS)
        with Counts(store) as counts, Profiles(store.folder, store.plan.slots) as seen:
            reader = Reader(broker.bootstrap, (*COUNTED, *UPSERTS), {}, "the benchmark's", "run it again", PATIENCE_MS)
            push = Push(store, counts, reader, judge, event_time, PUSH_MS, Gauges())
            begun = time.process_time()
            while committed(seen) < events:
                push.turn()
            cpu_s = time.process_time() - begun
            thread = threading.Thread(target=paced, args=(sender, live_s * rate, users, items, rate))
            thread.start()
            took_s: list[float] = []
            done = offsets(seen)
            while thread.is_alive() or committed(seen) < events + live_s * rate:
                push.turn()
                now_s, visible = time.time(), offsets(seen)
                for where, upto in visible.items():
                    took_s += [now_s - at for at in sender.sent_s.get(where, [])[done.get(where, 0) : upto]]
                done = visible
            thread.join()
            reader.close()
        sender.close()
    return {
        "events": events,
        "slots": len(store.plan.slots.slots),
        "counted": judge.counted,
        "us_per_event": round(1e6 * cpu_s / events, 1),
        "events_per_s_core": round(events / cpu_s),
        "live_rate": rate,
        "visible_p50_s": round(float(np.percentile(took_s, 50)), 3),
        "visible_p99_s": round(float(np.percentile(took_s, 99)), 3),
    }


def paced(sender: Sender, n: int, users: int, items: int, rate: int) -> None:
    begun = time.monotonic()
    for number, (topic, message) in enumerate(messages(n, users, items, "live")):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        sender.send(topic, message)


def offsets(seen: Profiles) -> dict[tuple[str, str], int]:
    """The next offset of each partition that a reader of the store sees as committed."""
    positions = seen.positions()
    return {(t, p): n for t in COUNTED if t in positions for p, n in positions[t]["offsets"].items()}


def committed(seen: Profiles) -> int:
    return sum(offsets(seen).values())
