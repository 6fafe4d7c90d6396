"""Measures how long a reader waits while a delta is exported: small finds of one thread, timed one by one.

For comparison it measures the same reader while the other thread copies as many bytes without the table. Finds during
which the reader was preempted are counted apart, because the table does not cause that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.common.figures import preempted
from benchmarks.cuckoo import contestants
from benchmarks.cuckoo.streams import Stream


def measure(keys: int, dim: int, rows: int, rounds: int, ids: int = 64) -> dict[str, Any]:
    table, _ = contestants.ours(keys, dim)
    stream = Stream(keys, "uniform")
    # Each find reads most of the shards, so it waits if any of them is locked.
    finds = [tf.constant(b.keys) for b in stream.batches(ids, 4096)]
    runs: dict[str, list[Any]] = {"export": [], "copy": []}
    exported = 0
    for _ in range(rounds):
        before = int(table.tick())
        table.set_tick(before + 1)
        for batch in stream.batches(min(65_536, rows), max(1, rows // 60_000)):
            table.apply(tf.constant(batch.keys), tf.zeros([len(batch.keys), dim]))
        result: list[Any] = []
        runs["export"].append(beside(lambda b=before, to=result: to.append(table.export_since(b)), table, finds))
        delta = result.pop()
        exported = len(delta.keys)
        source = [np.asarray(part) for part in delta]
        runs["copy"].append(beside(lambda s=source: [part.copy() for part in s for _ in range(4)], table, finds))
    return {
        "keys": keys,
        "dim": dim,
        "rows": exported,
        "ids_a_find": ids,
        **{work: summed(finds) for work, finds in runs.items()},
    }


def beside(work: Callable[[], Any], table: Any, finds: list[Any]) -> tuple[Any, Any]:
    """The milliseconds of each find that ran during `work`, and whether the reader was preempted in it."""
    stop, started = threading.Event(), threading.Event()
    took: list[float] = []
    lost: list[bool] = []

    def read() -> None:
        while not stop.is_set():
            for ids in finds:
                before, begin = preempted(), time.perf_counter()
                table.find(ids)
                took.append(1e3 * (time.perf_counter() - begin))
                lost.append(preempted() > before)
                started.set()
                if stop.is_set():
                    return

    reader = threading.Thread(target=read)
    reader.start()
    started.wait()
    first = len(took)
    work()
    last = len(took)
    stop.set()
    reader.join()
    return np.array(took[first:last]), np.array(lost[first:last])


def summed(runs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Sums up the rounds: `worst_ms` without the finds in which the reader was preempted, `worst_all_ms` with them."""
    undisturbed = [took[~lost] for took, lost in runs]
    p50, p99, p999 = np.percentile(np.concatenate(undisturbed), [50, 99, 99.9])
    return {
        "finds": int(sum(len(took) for took, _ in runs)),
        "lost_core": int(sum(lost.sum() for _, lost in runs)),
        "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4),
        "p999_ms": round(float(p999), 4),
        "worst_ms": [round(float(k.max()), 4) for k in undisturbed],
        "worst_all_ms": [round(float(took.max()), 4) for took, _ in runs],
    }
