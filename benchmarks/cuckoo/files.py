"""Measures saving a table to a folder and restoring it: rows a second, and memory beside the table's own.

It drops the page cache before it restores, so that it reads the disk. Only root may do that; `cache` is cold or warm.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tensorflow as tf

from benchmarks.common.figures import ROOT
from benchmarks.cuckoo import contestants
from benchmarks.cuckoo.streams import Stream

DROP = Path("/proc/sys/vm/drop_caches")


def measure(keys: int, dim: int, rounds: int) -> dict[str, Any]:
    # Both tables have the same name, so that one can restore what the other saved.
    table = contestants.cuckoo(dim, keys)
    for ids in contestants.all_keys(keys):
        table.lookup(ids)
    table_bytes = psutil.Process().memory_info().rss
    (ROOT / "build").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="table-", dir=ROOT / "build"))
    runs = []
    try:
        for number in range(rounds):
            saved = folder / str(number)
            save_s, save_more = beside(lambda to=saved: table.save(to))
            size = sum(f.stat().st_size for f in saved.iterdir())
            begin = time.perf_counter()
            os.sync()
            sync_s = time.perf_counter() - begin
            cache = dropped()
            other = contestants.cuckoo(dim, keys)
            before = psutil.Process().memory_info().rss
            restore_s, restore_more = beside(lambda to=other, at=saved: to.restore(at))
            rss_more = psutil.Process().memory_info().rss - before
            sample = tf.constant(Stream(keys, "uniform", seed=number).batches(min(keys, 4096) // 2, 1)[0].keys)
            assert np.array_equal(other.find(sample), table.find(sample)) and other.stats()["size"] == keys
            runs.append(
                {
                    "cache": cache,
                    "bytes_per_row": round(size / keys, 2),
                    "save_M_rows_per_s": round(keys / save_s / 1e6, 3),
                    "save_and_sync_M_rows_per_s": round(keys / (save_s + sync_s) / 1e6, 3),
                    "save_extra_memory": round(save_more / table_bytes, 4),
                    "restore_M_rows_per_s": round(keys / restore_s / 1e6, 3),
                    "restore_extra_memory": round(max(0, restore_more - rss_more) / max(1, rss_more), 4),
                }
            )
            print(f"  saved {runs[-1]['save_M_rows_per_s']}, restored {runs[-1]['restore_M_rows_per_s']} M rows/s")
            del other
            shutil.rmtree(saved)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"keys": keys, "dim": dim, "runs": runs}


def dropped() -> str:
    """Drops the page cache, if it may. Returns the state of the cache."""
    try:
        DROP.write_text("1\n")
    except OSError:
        return "warm: only root may drop the page cache"
    return "cold"


def beside(work: Callable[[], Any]) -> tuple[float, int]:
    """The seconds of `work`, and the most that the process grew meanwhile, in bytes."""
    process = psutil.Process()
    before = most = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return seconds, most - before
