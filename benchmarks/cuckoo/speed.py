"""Measures the rate of each verb of each contestant. The contestants' batches take turns, in a new order each round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from benchmarks.common.figures import rates, timed, times_faster
from benchmarks.cuckoo import contestants
from benchmarks.cuckoo.contestants import Batch, Verbs
from benchmarks.cuckoo.streams import Stream

VERBS = ("find", "lookup", "apply", "import")
RATIOS = {
    "find_vs_ceiling": ("find", "index_line"),
    "find_vs_row_copy": ("find", "row_copy"),
    "find_vs_gather": ("find", "gather"),
    "find_vs_DenseHashTable": ("find", "DenseHashTable"),
    "find_vs_MutableHashTable": ("find", "MutableHashTable"),
    "lookup_vs_ceiling": ("lookup", "index_line"),
    "apply_vs_stock": ("apply", "stock"),
    "import_vs_DenseHashTable": ("import", "DenseHashTable"),
}


def measure(keys: int, dim: int, sizes: list[int], rounds: int, streams: list[str]) -> dict[str, Any]:
    verbs: dict[str, Verbs] = {}
    fill: dict[str, float] = {}

    def join(name: str, make: Any) -> Any:
        print(f"  filling {name}", flush=True)
        begin = time.perf_counter()
        table, calls = make()
        for verb, of in calls.items():
            verbs.setdefault(verb, {}).update(of)
        fill[name] = round(keys / (time.perf_counter() - begin) / 1e6, 3)
        return table

    table = join("ours", lambda: contestants.ours(keys, dim))
    ceiling = join("ceiling", lambda: contestants.ceilings(keys, dim))
    join("dense", lambda: (None, contestants.dense(keys, dim)))
    for kind in ("DenseHashTable", "MutableHashTable"):
        join(kind, lambda kind=kind: (None, contestants.hash_table(keys, dim, kind)))
    warm = Stream(keys, "uniform", seed=1).batches(16_384, 24)
    ahead = ceiling.tune([w.places for w in warm], [w.keys for w in warm])
    cells, ratios = [], []
    for kind in streams:
        stream = Stream(keys, kind)
        for size in sizes:
            print(f"  {kind}, batches of {size}", flush=True)
            took = race(verbs, stream, size, dim, rounds if size < 65_536 else max(2, rounds // 2))
            setting = {"keys": keys, "dim": dim, "stream": kind, "batch": size}
            for (verb, side), seconds in took.items():
                cells.append({"verb": verb, "contestant": side, **setting, "M_keys_per_s": rates(seconds, size)})
            for name, (verb, side) in RATIOS.items():
                other = took.get((verb, side)) or took[("find", side)]
                ratios.append({"name": name, **setting, **times_faster(took[(verb, "ours")], other)})
    if "uniform" in streams:
        cells += slow(verbs["apply once"], Stream(keys, "uniform", seed=2), sizes, keys, dim)
    return {"cells": cells, "ratios": ratios, "fill_M_rows_per_s": fill, "prefetch_ahead": ahead, **scans(table, keys)}


def race(
    verbs: dict[str, Verbs], stream: Stream, size: int, dim: int, rounds: int
) -> dict[tuple[str, str], list[float]]:
    """(verb, contestant) -> seconds of each round.

    In a round each verb has a batch of its own, which its contestants share. So no call profits from the cache of the
    call before.
    """
    pool = min(len(VERBS) * (rounds + 1), max(24, 2_000_000 // size))
    batches = [Batch.of(ids, dim) for ids in stream.batches(size, pool)]
    turn = [(verb, side) for verb in VERBS for side in verbs[verb]]
    took: dict[tuple[str, str], list[float]] = {t: [] for t in turn}
    rng = random.Random(size)
    for number in range(-1, rounds):  # the first round warms up
        rng.shuffle(turn)
        for verb, side in turn:
            batch = batches[(number * len(VERBS) + VERBS.index(verb)) % pool]
            call = verbs[verb][side]
            seconds = timed(lambda call=call, batch=batch: call(batch), time.perf_counter)
            if number >= 0:
                took[verb, side].append(seconds)
    return took


def slow(verbs: Verbs, stream: Stream, sizes: list[int], keys: int, dim: int) -> list[dict[str, Any]]:
    """The cells of calls that take up to seconds: three batches of each size."""
    cells = []
    for side, call in verbs.items():
        for size in sizes:
            batches = [Batch.of(ids, dim) for ids in stream.batches(size, 4)]
            seconds = [timed(lambda call=call, b=b: call(b), time.perf_counter) for b in batches][1:]
            setting = {"keys": keys, "dim": dim, "stream": "uniform", "batch": size}
            cells.append({"verb": "apply", "contestant": side, **setting, "M_keys_per_s": rates(seconds, size)})
    return cells


def scans(table: Any, keys: int, rounds: int = 3) -> dict[str, Any]:
    """Exports the tenth of the rows that changed last, then no rows; then evicts the oldest rows several times."""
    stream = Stream(keys, "uniform", seed=3)
    export, nothing, evicted = [], [], []
    share, first = max(1, keys // 10), int(table.tick())
    for _ in range(rounds):
        before = int(table.tick())
        table.set_tick(before + 1)
        for ids in stream.batches(min(share, 65_536), max(1, share // 65_536)):
            table.apply(tf.constant(ids.keys), tf.zeros([len(ids.keys), table.dim]))
        export.append(counted(lambda b=before: table.export_since(b).keys))
        nothing.append(counted(lambda t=before + 1: table.export_since(t).keys))
    for tick in range(first, first + rounds):
        evicted.append(counted(lambda t=tick: table.evict(t)))
    return {"export": export, "export_of_nothing": nothing, "evict": evicted}


def counted(scan: Callable[[], Any]) -> dict[str, float]:
    """The rows that a scan returned, its time, and the rate."""
    counts: list[int] = []
    seconds = timed(lambda: counts.append(len(scan())), time.perf_counter)
    return {"rows": counts[0], "ms": round(1e3 * seconds, 2), "M_rows_per_s": round(counts[0] / seconds / 1e6, 3)}
