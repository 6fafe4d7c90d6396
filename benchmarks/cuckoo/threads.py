"""Measures two threads beside one: find and the index-line ceiling, each thread with batches of its own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common.figures import spread, times_faster
from benchmarks.cuckoo import contestants
from benchmarks.cuckoo.contestants import Batch
from benchmarks.cuckoo.streams import Stream

Call = Callable[[Batch], Any]


def measure(keys: int, dim: int, batch: int, rounds: int, batches: int = 16) -> dict[str, Any]:
    table, ours = contestants.ours(keys, dim)
    ceiling, ceilings = contestants.ceilings(keys, dim)
    stream = Stream(keys, "uniform")
    pools = [[Batch.of(ids, dim) for ids in stream.batches(batch, 4 * batches)] for _ in range(2)]
    ahead = ceiling.tune([b.ids.places for b in pools[0]], [b.ids.keys for b in pools[0]])
    calls: dict[str, Call] = {"ours": ours["find"]["ours"], "ceiling": ceilings["find"]["index_line"]}
    turn = [(side, threads) for side in calls for threads in (1, 2)]
    took: dict[tuple[str, int], list[float]] = {t: [] for t in turn}
    rng = random.Random(0)
    for number in range(-1, rounds):
        rng.shuffle(turn)
        begin = (number % 4) * batches
        for side, threads in turn:
            parts = [pool[begin : begin + batches] for pool in pools[:threads]]
            seconds = together(calls[side], parts)
            if number >= 0:
                took[side, threads].append(seconds)
    speed_up = {side: [2 * a / b for a, b in zip(took[side, 1], took[side, 2], strict=True)] for side in calls}
    assert table.stats()["size"] == keys
    return {
        "keys": keys,
        "dim": dim,
        "batch": batch,
        "prefetch_ahead": ahead,
        "speed_up": {side: spread(values) for side, values in speed_up.items()},
        "two_threads_vs_ceiling": times_faster(speed_up["ceiling"], speed_up["ours"]),
        "M_keys_per_s": {
            f"{side}, {threads}": spread([threads * batches * batch / s / 1e6 for s in seconds])
            for (side, threads), seconds in took.items()
        },
    }


def together(call: Call, batches: list[list[Batch]]) -> float:
    """Runs each list of batches in a thread. Returns the seconds from the first start to the last end."""
    start = threading.Barrier(len(batches))
    begins: list[float] = []
    ends: list[float] = []

    def run(part: list[Batch]) -> None:
        start.wait()
        begins.append(time.perf_counter())
        for batch in part:
            call(batch)
        ends.append(time.perf_counter())

    threads = [threading.Thread(target=run, args=(part,)) for part in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(ends) - min(begins)
