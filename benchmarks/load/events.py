"""Sends events of now at a given rate, from a process of its own: impressions of the simulator, and their actions.

    python -m benchmarks.load.events SOURCE 127.0.0.1:9092 none               # nothing is scored
    python -m benchmarks.load.events SOURCE 127.0.0.1:9092 127.0.0.1:8500     # each list is scored before it is shown

It writes `ready`. Then each line of its input is a rate in events a second, which it keeps from then on, and it answers
with what it sent since the line before, as JSON. It ends with its input.

The bytes of an event are made before, but for its id and its time: the load shares the processor with what it loads.
A scored list has ITEMS items of one user, and is one Predict request. Its impressions are sent when it is answered.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from typing import Any

import numpy as np
from kafka import KafkaProducer

from benchmarks.load.client import PREDICT
from serving import client
from serving.signatures import RANKER
from streaming import topics
from streaming.declaration import Declaration
from streaming.publisher import impression
from streaming.source import Exposure, load
from streaming.topics import ACTIONS, IMPRESSIONS

ITEMS = 10
POOL = 10_000
TICK_S = 0.02
MOST_OPEN = 64
"""So many requests wait for their answer at once. The next one is late."""


class Item:
    """An impression without its id and time, and its actions: (delay, rest of the message)."""

    def __init__(self, exposure: Exposure, position: int, declaration: Declaration) -> None:
        e = exposure
        scores = dict.fromkeys(declaration.tasks, 0.3125)
        event = impression("", "", e.user_id, e.item_id, 0, position, e.features, scores, "000001-0a1b2c3d", 1)
        event = {name: value for name, value in event.items() if name not in ("impression_id", "request_id", "ts_ms")}
        self.rest = json.dumps(event, separators=(",", ":")).encode()[1:]
        self.actions = [
            (at_ms - e.ts_ms, b'"action":"%b","value":1.0}' % task.encode()) for task, at_ms in e.outcomes.items()
        ]


class Load:
    """The events of a pool of exposures, sent again and again with new ids and times."""

    def __init__(self, source: str, kafka: str, serving: str) -> None:
        loaded = load(source)
        self._declaration = loaded.declaration
        exposures = [e for e, _ in zip(loaded.live(), range(POOL), strict=False)]
        lists = [exposures[k : k + ITEMS] for k in range(0, len(exposures) - ITEMS + 1, ITEMS)]
        self._lists = [[Item(e, k, self._declaration) for k, e in enumerate(one)] for one in lists]
        self.events_a_list = ITEMS + sum(len(i.actions) for one in self._lists for i in one) / len(self._lists)
        self._channel = None if serving == "none" else client.channel(serving)
        self._requests = [self._request(one) for one in lists] if self._channel else []
        self._predict = self._channel.unary_unary(PREDICT) if self._channel else None
        self._producer = KafkaProducer(
            bootstrap_servers=kafka, acks="all", enable_idempotence=True, linger_ms=5, compression_type="lz4",
            batch_size=2**16,
        )  # fmt: skip
        self._run = b"%x" % time.time_ns()
        self._number = 0
        self._due_actions: dict[int, list[tuple[int, bytes, bytes]]] = {}
        self._acted = 0
        self._answered: deque[tuple[int, float, bool]] = deque()
        self._open = 0
        self.counts: dict[str, float] = {}
        self.waits_ms: list[float] = []
        self.clear()

    def _request(self, exposures: list[Exposure]) -> bytes:
        user = {f.name: exposures[0].features[f.name] for f in self._declaration.features if f.view in _OF_USER}
        rows = [e.features | user for e in exposures]
        arrays = client.inputs(rows, self._declaration)
        message: bytes = client.predict_request(RANKER, "serving_default", arrays).SerializeToString()
        return message

    def clear(self) -> None:
        self.counts = {"impressions": 0, "actions": 0, "scored": 0, "failed": 0}
        self.waits_ms = []

    def run(self, rate: list[float], ended: threading.Event) -> None:
        """Sends `rate[0]` events a second. A list that cannot be sent in time is sent later, up to a second."""
        before, owed = time.monotonic(), 0.0
        while not ended.is_set():
            now = time.monotonic()
            each_s = rate[0] / self.events_a_list
            owed = min(owed + (now - before) * each_s, max(1.0, each_s))
            before = now
            while owed >= 1 and self._open < MOST_OPEN:
                owed -= 1
                self._show()
            while self._answered:
                number, wait_ms, ok = self._answered.popleft()
                self._open -= 1
                self.waits_ms.append(wait_ms)
                self.counts["scored" if ok else "failed"] += 1
                self._send(number)
            self._act(int(now / TICK_S))
            time.sleep(max(0.0, TICK_S - (time.monotonic() - now)))
        self._producer.close()

    def _show(self) -> None:
        number, self._number = self._number, self._number + 1
        if self._predict is None:
            self._send(number)
            return
        begun = time.monotonic()

        def answered(future: Any) -> None:
            self._answered.append((number, 1000 * (time.monotonic() - begun), future.exception() is None))

        self._open += 1
        self._predict.future(self._requests[number % len(self._requests)], timeout=30).add_done_callback(answered)

    def _send(self, number: int) -> None:
        """Sends the impressions of a list."""
        now_s, ts_ms = time.monotonic(), time.time_ns() // 1_000_000
        for place, item in enumerate(self._lists[number % len(self._lists)]):
            key = b"%b-%d-%d" % (self._run, number, place)
            head = b'{"impression_id":"%b","request_id":"%b-%d","ts_ms":%d,' % (key, self._run, number, ts_ms)
            self._put(IMPRESSIONS, number, key, head + item.rest)
            for delay_ms, rest in item.actions:
                tick = int((now_s + delay_ms / 1000) / TICK_S) + 1
                self._due_actions.setdefault(tick, []).append((number, key, rest))
        self.counts["impressions"] += ITEMS

    def _act(self, tick: int) -> None:
        """Sends the actions whose time has come."""
        for due in range(self._acted or tick, tick + 1):
            for number, key, rest in self._due_actions.pop(due, ()):
                head = b'{"impression_id":"%b","ts_ms":%d,' % (key, time.time_ns() // 1_000_000)
                self._put(ACTIONS, number, key, head + rest)
                self.counts["actions"] += 1
        self._acted = tick + 1

    def _put(self, topic: str, number: int, key: bytes, message: bytes) -> None:
        self._producer.send(topic, message, key=key, partition=number % topics.PARTITIONS)


_OF_USER = ("user", "profile")


def main() -> None:
    source, kafka, serving = sys.argv[1:]
    client.light()
    load_of, rate, ended = Load(source, kafka, serving), [0.0], threading.Event()

    def obey() -> None:
        for line in sys.stdin:
            counts, waits_ms = load_of.counts, load_of.waits_ms
            load_of.clear()
            rate[0] = float(line)
            p50, p99 = np.percentile(waits_ms, (50, 99)).tolist() if waits_ms else (0.0, 0.0)
            print(json.dumps(counts | {"p50_ms": p50, "p99_ms": p99}), flush=True)
        ended.set()

    threading.Thread(target=obey, daemon=True).start()
    print("ready", flush=True)
    load_of.run(rate, ended)


if __name__ == "__main__":
    main()
