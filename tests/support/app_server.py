"""One of several servers of an app: shows items and reports clicks by its own clock, until it is killed.

python -m tests.support.app_server HOST:PORT NAME CLOCK_OFFSET_MS WINDOW_MS
"""

from __future__ import annotations

import random
import sys
import time

from kafka.partitioner.default import murmur2

from streaming.declaration import Declaration, Feature
from streaming.publisher import Publisher, action, impression
from streaming.topics import ACTIONS, IMPRESSIONS

PARTITIONS, BUSY = 4, (0, 1)
"""The topics' partitions, and those that get events. The others are idle."""


def declaration(window_ms: int) -> Declaration:
    return Declaration("news", (Feature("user", "id"),), ("click", "like"), "click", window_ms)


def partition(key: str) -> int:
    return (murmur2(key.encode()) & 0x7FFFFFFF) % PARTITIONS


def main() -> None:
    kafka, name, offset_ms, window_ms = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    rng, number, acts = random.Random(name), 0, []
    with Publisher(kafka, declaration(window_ms)) as publisher:
        while True:
            now = time.time_ns() // 1_000_000 + offset_ms
            number += 1
            key = f"{name}-{time.time_ns()}-{number}"
            if partition(key) in BUSY:
                event = impression(key, "r", number, number % 7, now, 0, {"user": number}, {})
                publisher.send(IMPRESSIONS, event)
                if rng.random() < 0.1:
                    publisher.send(IMPRESSIONS, event)  # a retry
                for task in ("click", "like"):
                    if rng.random() < 0.4:
                        acts.append((now + rng.randrange(window_ms + window_ms // 5), key, task))
            for at_ms, of, task in [act for act in acts if act[0] <= now]:
                publisher.send(ACTIONS, action(of, task, at_ms))
            acts = [act for act in acts if act[0] > now]
            publisher.flush()
            time.sleep(0.02)


if __name__ == "__main__":
    main()
