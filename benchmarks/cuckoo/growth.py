"""Measures the longest batch while a table is filled from empty, in CPU time of its thread and in wall time.

The op runs on the calling thread, which takes nearly all of the process's CPU time. The rest is the thread that takes
pages from the kernel (core/pager.h); its cost shows in the wall time. `control` is arithmetic within the core's own
cache that takes about as long as a batch, after each batch. Its longest run is caused by the machine.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.cuckoo import contestants

NUMBERS = np.ones(4000)


def control() -> None:
    for _ in range(1400):
        np.sqrt(NUMBERS, out=NUMBERS)


def measure(keys: int, dim: int, batch: int, rounds: int, others: bool) -> dict[str, Any]:
    # The table has no expected size, so it grows all the way.
    fills = [fill(contestants.cuckoo(dim).lookup, keys, batch, control) for _ in range(rounds)]
    result: dict[str, Any] = {
        "keys": keys,
        "dim": dim,
        "batch": batch,
        "ours": fills,
        "worst_cpu_ms": max(f["cpu_ms"]["worst"] for f in fills),
        "worst_wall_ms": max(f["wall_ms"]["worst"] for f in fills),
        "thread_share_of_cpu": min(f["thread_share_of_cpu"] for f in fills),
    }
    if others:
        zeros = tf.zeros([dim])
        rows = tf.zeros([batch, dim])
        dense = tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, zeros, empty_key=-1, deleted_key=-2)
        result["DenseHashTable"] = fill(lambda k: dense.insert(k, rows[: len(k)]), keys, batch)
        del dense
        mutable = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, zeros)
        result["MutableHashTable"] = fill(lambda k: mutable.insert(k, rows[: len(k)]), keys, batch)
    return result


def fill(
    call: Callable[[Any], Any], keys: int, batch: int, control: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Fills a table with the keys of places 0 .. keys - 1."""
    cpu, wall, idle = [], [], []
    process = thread = 0.0
    worst: dict[str, float] = {}
    for ids in contestants.all_keys(keys, batch):
        used, stole = resource.getrusage(resource.RUSAGE_THREAD), stolen_ms()
        all_cpu, begin_cpu, begin = time.process_time(), time.thread_time(), time.perf_counter()
        call(ids)
        wall.append(time.perf_counter() - begin)
        cpu.append(time.thread_time() - begin_cpu)
        if cpu[-1] == max(cpu[-1], worst.get("cpu_s", 0.0)):
            now = resource.getrusage(resource.RUSAGE_THREAD)
            worst = {"cpu_s": cpu[-1], "batch": len(cpu) - 1, "faults": now.ru_minflt - used.ru_minflt}
            worst |= {"kernel_ms": round(1e3 * (now.ru_stime - used.ru_stime), 3)}
            worst |= {"lost_core": now.ru_nivcsw - used.ru_nivcsw, "stolen_ms": stolen_ms() - stole}
        process, thread = process + time.process_time() - all_cpu, thread + cpu[-1]
        if control is not None:
            begin_cpu = time.thread_time()
            control()
            idle.append(time.thread_time() - begin_cpu)
    print(f"  {keys} keys in batches of {batch}: the longest {1e3 * max(cpu):.1f} ms of CPU", flush=True)
    return {
        "cpu_ms": longest(cpu),
        "wall_ms": longest(wall),
        **({"control_cpu_ms": longest(idle)} if idle else {}),
        "worst_batch": {k: v for k, v in worst.items() if k != "cpu_s"},
        "thread_share_of_cpu": round(thread / process, 3),
        "M_rows_per_s": round(keys / sum(wall) / 1e6, 3),
    }


def stolen_ms() -> float:
    """The time that the host has taken from all virtual cores. A thread's CPU time includes it."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return 1e3 * int(fields[8]) / os.sysconf("SC_CLK_TCK")


def longest(seconds: list[float]) -> dict[str, float]:
    p50, p99, p999, worst = 1e3 * np.percentile(seconds, [50, 99, 99.9, 100])
    return {"p50": round(p50, 3), "p99": round(p99, 3), "p999": round(p999, 3), "worst": round(worst, 3)}
