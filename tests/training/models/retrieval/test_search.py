"""Retrieval in a graph against a loop: the items at a beam's paths, each once, and the best of them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from training.models.retrieval.network import PathNetwork
from training.models.retrieval.search import best, candidates
from training.models.retrieval.slots import rows_of


def test_the_items_of_a_beam_come_once_each_and_the_best_first() -> None:
    network = PathNetwork(4, nodes=4, layers=2)
    random = np.random.default_rng(0)
    at = random.integers(-50, 50, (16, 3))
    known = random.random(at.shape) < 0.7
    table, users = tf.constant(rows_of(at, known)), tf.random.stateless_normal([5, 4], (1, 2))
    value = {int(item): float(random.normal()) for item in range(-50, 50)}

    @tf.function(input_signature=[tf.TensorSpec([None, 4])])
    def retrieve(users: tf.Tensor) -> tuple[tf.Tensor, ...]:
        ids, count = candidates(network, users, 6, lambda paths: tf.gather(table, paths))
        scores = tf.gather(tf.constant([value[i] for i in range(-50, 50)]), tf.clip_by_value(ids + 50, 0, 99))
        return ids, count, *best(ids, count, scores, 4)

    ids, count, found, scores = (part.numpy() for part in retrieve(users))
    paths = network.beam(users, 6)[0].numpy()
    for n in range(5):
        items = {int(i) for path in paths[n] for i in at[path][known[path]]}
        assert sorted(ids[n][count[n]].tolist()) == sorted(items)
        expected = sorted(items, key=lambda i: -value[i])[:4]
        assert found[n].tolist() == expected + [0] * (4 - len(expected))
        assert np.isneginf(scores[n][len(expected) :]).all()
