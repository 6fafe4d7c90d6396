"""Runs the steps of tensorflow-recommenders-addons for addons.py, in an environment of its own.

`addons_peer.py DIM BATCH` reads requests from stdin. "fill" fills the table and its Adagrad slot by `upsert`. "step"
is shadow lookup and DynamicEmbeddingOptimizer, as their documentation has them. "find" is the lookup alone. Each answer
has the seconds of the call.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import tensorflow as tf
import tensorflow_recommenders_addons as tfra

RATE, START = 0.05, 0.1


def main() -> None:
    dim, batch = int(sys.argv[1]), int(sys.argv[2])
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    de = tfra.dynamic_embedding
    start = tf.keras.initializers.RandomNormal(0, 0.01)
    table = de.get_variable("table", dim=dim, initializer=start, devices=["/CPU:0"])
    shadow = de.shadow_ops.ShadowVariable(table, name="shadow")
    optimizer = de.DynamicEmbeddingOptimizer(tf.keras.optimizers.legacy.Adagrad(RATE, START))
    gradient = tf.random.stateless_normal([batch, dim], [0, 0], 0, 0.01)

    @tf.function(input_signature=[tf.TensorSpec([batch], tf.int64)])
    def step(ids):
        with tf.GradientTape() as tape:
            rows = de.shadow_ops.embedding_lookup(shadow, ids)
            loss = tf.reduce_sum(rows * gradient)
        optimizer.apply_gradients(zip(tape.gradient(loss, [shadow]), [shadow], strict=True))
        return loss

    # The first step makes the slot. Its keys are those of the first fill, which overwrites their rows.
    first = True
    print(json.dumps({"version": tfra.__version__, "tensorflow": tf.__version__}), flush=True)
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        ids = tf.constant(np.frombuffer(sys.stdin.buffer.read(8 * asked["n"]), np.int64))
        if first:
            step(tf.concat([ids] * (batch // len(ids) + 1), 0)[:batch])
            slot = optimizer.get_slot(shadow, "accumulator").params
            first = False
        if asked["do"] == "fill":
            rows = tf.random.stateless_normal([len(ids), dim], [0, 1], 0, 0.01)
            sums = tf.fill([len(ids), dim], START)
            begin = time.perf_counter()
            table.upsert(ids, rows)
            slot.upsert(ids, sums)
        else:
            begin = time.perf_counter()
            step(ids) if asked["do"] == "step" else table.lookup(ids)
        print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)


if __name__ == "__main__":
    main()
