"""The path network against NumPy: every path enumerated one by one, and the loss in a loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from training.models.retrieval.network import PathNetwork, log_sum_loss

Weights = dict[str, NDArray[np.float32]]


def made(nodes: int, layers: int) -> tuple[PathNetwork, Weights]:
    """A network whose weights are far from 0, biases too: no path is like another."""
    network = PathNetwork(5, nodes=nodes, layers=layers, dim=4, hidden=6)
    random = np.random.default_rng(nodes)
    for weight in network.weights.values():
        weight.assign(random.normal(0, 1, weight.shape))
    return network, {name: weight.numpy() for name, weight in network.weights.items()}


def log_p(w: Weights, user: NDArray[np.float32], nodes: tuple[int, ...]) -> float:
    """log p of one path, layer by layer, from the formula alone."""
    total = 0.0
    for d, node in enumerate(nodes):
        hidden = user @ w[f"user_{d}"] + w[f"hidden_bias_{d}"]
        for e in range(d):
            hidden = hidden + w[f"vectors_{e}"][nodes[e]] @ w[f"prefix_{d}_{e}"]
        logits = np.maximum(hidden, 0) @ w[f"nodes_{d}"] + w[f"nodes_bias_{d}"]
        total += float(logits[node]) - math.log(sum(math.exp(float(logit)) for logit in logits))
    return total


def test_a_wide_beam_equals_the_enumeration_of_all_paths() -> None:
    network, w = made(nodes=8, layers=3)
    users = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    paths, scores = (found.numpy() for found in network.beam(tf.constant(users), 64))
    for user, path, score in zip(users, paths, scores, strict=True):
        every = sorted(((log_p(w, user, c), c) for c in itertools.product(range(8), repeat=3)), reverse=True)[:64]
        np.testing.assert_allclose(score, [p for p, _ in every], atol=1e-5)
        assert path.tolist() == [64 * a + 8 * b + c for _, (a, b, c) in every]


def test_a_narrow_beam_of_four_layers_keeps_each_prefix_with_its_own_parent() -> None:
    network, w = made(nodes=4, layers=4)
    user = np.random.default_rng(2).normal(size=(1, 5)).astype(np.float32)
    prefixes: list[tuple[int, ...]] = [()]
    for _ in range(4):
        longer = [(*prefix, node) for prefix in prefixes for node in range(4)]
        prefixes = sorted(longer, key=lambda c: -log_p(w, user[0], c))[:3]
    paths, scores = network.beam(tf.constant(user), 3)
    assert paths.numpy()[0].tolist() == [64 * a + 16 * b + 4 * c + d for a, b, c, d in prefixes]
    np.testing.assert_allclose(scores.numpy()[0], [log_p(w, user[0], c) for c in prefixes], atol=1e-5)
    np.testing.assert_allclose(network.log_probability(tf.constant(user), paths), scores, atol=1e-5)


def test_a_beam_wider_than_all_paths_finds_each_once() -> None:
    network, _ = made(nodes=3, layers=2)
    paths, scores = network.beam(tf.ones([1, 5]), 100)
    assert sorted(paths.numpy()[0].tolist()) == list(range(9))
    assert math.fsum(np.exp(scores.numpy()[0].astype(float))) == pytest.approx(1, abs=1e-5)


def test_the_loss_is_the_log_of_the_sum_over_an_items_paths() -> None:
    network, w = made(nodes=4, layers=2)
    users = np.random.default_rng(3).normal(size=(3, 5)).astype(np.float32)
    paths, weights = [[1, 7, 11], [5, -1, -1], [-1, -1, -1]], [1.0, 0.5, 2.0]
    expected = 0.0
    for user, chosen, weight in zip(users, paths, weights, strict=True):
        terms = [math.exp(log_p(w, user, divmod(c, 4))) for c in chosen if c >= 0]
        expected -= weight * math.log(sum(terms)) if terms else 0.0
    with tf.GradientTape() as tape:
        loss = log_sum_loss(network.log_probability(tf.constant(users), tf.constant(paths, tf.int64)), weights)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    for gradient in tape.gradient(loss, list(network.weights.values())):
        assert bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(gradient))))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes": 1}, "nodes is 1, allowed is 2 or more"),
        ({"nodes": 300, "layers": 3}, "nodes \\*\\* layers is 27000000, allowed is up to 16777216"),
    ],
)
def test_wrong_sizes(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathNetwork(5, **wrong)
