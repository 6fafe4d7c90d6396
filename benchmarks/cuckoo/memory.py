"""Measures the memory of a table that grows from empty, of its index a key, and of a table of ten ids."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import psutil
import tensorflow as tf

from benchmarks.cuckoo import contestants

SLOT_BYTES = 16
"""One place of the index: a key, its row, its tick."""
SMALL = 100


def measure(keys: int, dim: int) -> dict[str, Any]:
    process = psutil.Process()
    warm = contestants.cuckoo(dim)
    for ids in contestants.all_keys(50_000):
        warm.lookup(ids)
    small = [contestants.cuckoo(dim, 10) for _ in range(SMALL)]
    ten = tf.constant(np.arange(10))
    for table in small:
        table.lookup(ten)
    small_stats = small[0].stats()
    del warm, small
    gc.collect()
    before = process.memory_info().rss
    table = contestants.cuckoo(dim)
    for ids in contestants.all_keys(keys, 4096):
        table.lookup(ids)
    growth = process.memory_info().rss - before
    stats = table.stats()
    payload = 4 * 2 * dim  # weights and Adagrad's slot
    print(f"  {keys} rows of {payload} bytes: {growth / keys:.1f} bytes of memory each", flush=True)
    return {
        "keys": keys,
        "dim": dim,
        "payload_bytes": payload,
        "bytes_per_row": round(growth / keys, 2),
        "memory_vs_payload": round(growth / keys / payload, 4),
        "index_bytes_per_key": round(stats["capacity"] * SLOT_BYTES / stats["size"], 3),
        "load": round(stats["load"], 4),
        "bytes_said_per_row": round(stats["bytes"] / keys, 2),
        "table_of_ten_bytes": small_stats["bytes"],
    }
