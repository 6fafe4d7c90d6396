"""The time of one retrieval among a million items, on one thread: beam, items at its paths, dot products, the best.

The tables are those of a served graph, DenseHashTables. The weights are random: the time does not depend on them. The
peer is brute force in the same run: the products with all vectors of a dense matrix, and the best of them.
Times are the processor's, so that other processes on the machine count little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from training.models.retrieval.network import PathNetwork
from training.models.retrieval.search import best, candidates
from training.models.retrieval.slots import WIDTH, rows_of

ITEMS, DIM, NODES, LAYERS, PATHS, CAP, BEAM, K = 1_000_000, 64, 100, 3, 3, 12, 50, 100
CALLS = 200
_INSERTED = 100_000


def measure(seed: int = 0, items: int = ITEMS) -> dict[str, float]:
    """Returns the milliseconds of both, and the items that a retrieval ranks in the mean."""
    random = np.random.default_rng(seed)
    network = PathNetwork(DIM, nodes=NODES, layers=LAYERS, seed=seed)
    vectors = random.normal(size=(items, DIM)).astype(np.float32)
    of_items = filled(np.arange(1, items + 1), vectors)
    of_paths, width = filled(*random_paths(random, network.paths, items)), [None, CAP * WIDTH]

    @tf.function(input_signature=[tf.TensorSpec([1, DIM])])
    def retrieve(user: Any) -> Any:
        ids, count = candidates(network, user, BEAM, lambda paths: tf.ensure_shape(of_paths.lookup(paths), width))
        scores = tf.linalg.matvec(of_items.lookup(ids[0]), user[0])[None]
        return *best(ids, count, scores, K), tf.reduce_sum(tf.cast(count, tf.int32))

    dense = tf.constant(vectors)

    @tf.function(input_signature=[tf.TensorSpec([1, DIM])])
    def brute(user: Any) -> Any:
        return tf.math.top_k(tf.linalg.matvec(dense, user[0]), K)

    users = [tf.constant(random.normal(size=(1, DIM)), tf.float32) for _ in range(CALLS)]
    ranked = [int(retrieve(user)[2]) for user in users]
    ours = [cpu_ms(retrieve, user) for user in users]
    theirs = [cpu_ms(brute, user) for user in users[: CALLS // 10]]
    return {
        "retrieve_1m_p50_ms": round(float(np.median(ours)), 3),
        "retrieve_1m_p99_ms": round(float(np.percentile(ours, 99)), 3),
        "brute_force_1m_p50_ms": round(float(np.median(theirs)), 3),
        "candidates_1m": round(float(np.mean(ranked)), 1),
        "fewest_1m": min(ranked),
    }


def random_paths(random: np.random.Generator, paths: int, items: int) -> tuple[Any, Any]:
    """Returns the paths that have items, and their rows: each item at PATHS random ones, CAP items a path at most."""
    path = random.integers(0, paths, items * PATHS)
    item = np.tile(np.arange(1, items + 1), PATHS)
    order = np.argsort(path, kind="stable")
    path, item = path[order], item[order]
    slot = np.arange(len(path)) - np.searchsorted(path, path)
    path, item, slot = (part[slot < CAP] for part in (path, item, slot))
    used, row = np.unique(path, return_inverse=True)
    ids, known = np.zeros((len(used), CAP), np.int64), np.zeros((len(used), CAP), bool)
    ids[row, slot], known[row, slot] = item, True
    return used, rows_of(ids, known)


def filled(keys: Any, rows: Any) -> Any:
    """Returns a served graph's table with these rows; zeros for an unknown key."""
    default = tf.zeros([rows.shape[1]])
    table = tf.lookup.experimental.DenseHashTable(
        tf.int64, tf.float32, default, empty_key=-(2**63), deleted_key=-(2**63) + 1, initial_num_buckets=1 << 21
    )
    for begin in range(0, len(keys), _INSERTED):
        table.insert(tf.constant(keys[begin : begin + _INSERTED]), tf.constant(rows[begin : begin + _INSERTED]))
    return table


def cpu_ms(call: Callable[[Any], Any], user: Any) -> float:
    begin = time.process_time()
    call(user)
    return 1000 * (time.process_time() - begin)
