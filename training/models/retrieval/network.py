"""The path network: p(path | user) over D layers of K nodes, its loss, and the beam search.

    log p(c | x) = sum_d log softmax(V_d relu(W_d [x, e_1(c_1) .. e_{d-1}(c_{d-1})] + a_d) + b_d)[c_d]

for a path c and a user's vector x, with vectors e_d of the nodes of layer d (Gao et al., Deep Retrieval, CIKM 2021,
arXiv 2007.07203, sections 3.1 and 3.4). A positive of an item with paths c_1 .. c_J costs -log sum_j p(c_j | x): the
sum is inside the logarithm, so one likely path is enough (section 3.2).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class PathNetwork:
    """p(path | user) for user vectors float32[n, width].

    `nodes`: K. `layers`: D. `dim`: numbers of a node's vector. `hidden`: units of each layer. `weights`: name ->
    variable, all that it learns.
    """

    def __init__(
        self, width: int, *, nodes: int = 50, layers: int = 3, dim: int = 16, hidden: int = 64, seed: int = 0
    ) -> None:
        for name, value, least in (("nodes", nodes, 2), ("layers", layers, 1), ("dim", dim, 1), ("hidden", hidden, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}, allowed is {least} or more")
        if nodes**layers > 2**24:
            raise ValueError(f"nodes ** layers is {nodes**layers}, allowed is up to {2**24}: a path is a float32")
        self.width, self.nodes, self.layers = width, nodes, layers
        self.paths = nodes**layers
        """The number of paths."""
        seeds = iter(range(seed * 100, seed * 100 + 100))
        self.weights: dict[str, tf.Variable] = {}
        for d in range(layers):
            shapes = {f"user_{d}": (width, hidden), f"nodes_{d}": (hidden, nodes)}
            shapes |= {f"prefix_{d}_{e}": (dim, hidden) for e in range(d)}
            if d < layers - 1:
                shapes[f"vectors_{d}"] = (nodes, dim)
            for name, shape in shapes.items():
                start = keras.initializers.GlorotUniform(seed=next(seeds))
                self.weights[name] = tf.Variable(start(shape), name=name)
            for name, size in ((f"hidden_bias_{d}", hidden), (f"nodes_bias_{d}", nodes)):
                self.weights[name] = tf.Variable(tf.zeros([size]), name=name)

    def log_probability(self, users: Any, paths: Any) -> Any:
        """Returns log p(path | user) float32[n, j] of int64[n, j]; for no path (-1) it is -inf."""
        chosen = self.nodes_of(tf.maximum(paths, 0))
        total = tf.gather(self._log_softmax(users, [])[:, 0], chosen[0], batch_dims=1)
        for d in range(1, self.layers):
            total += tf.gather(self._log_softmax(users, chosen[:d]), chosen[d], batch_dims=2)
        return tf.where(paths < 0, -float("inf"), total)

    def beam(self, users: Any, width: int) -> tuple[Any, Any]:
        """Returns the most likely paths of each user, the best first: int64[n, b], and their log p float32[n, b].

        b is `width`, or the number of paths if that is less. The search keeps `width` prefixes a layer, by the
        probability of the whole prefix (algorithm 1 of the paper). With width >= K^(D-1) it finds the true best paths.
        """
        n = tf.shape(users)[0]
        chosen: list[Any] = []
        scores, prefixes = tf.zeros([n, 1]), 1
        for _ in range(self.layers):
            flat = [n, prefixes * self.nodes]
            total = tf.reshape(scores[:, :, None] + self._log_softmax(users, chosen), flat)
            prefixes = min(width, prefixes * self.nodes)
            scores, best = tf.math.top_k(total, prefixes)
            parent = best // self.nodes
            chosen = [tf.gather(node, parent, batch_dims=1) for node in chosen] + [best % self.nodes]
        return self.path_of(chosen), scores

    def nodes_of(self, paths: Any) -> list[Any]:
        """Returns the node of each layer int32[...] of paths int64[...]."""
        places = [self.nodes**d for d in reversed(range(self.layers))]
        return [tf.cast(paths // place % self.nodes, tf.int32) for place in places]

    def path_of(self, nodes: list[Any]) -> Any:
        """Returns the paths int64[...] of the nodes of each layer int32[...]."""
        path = tf.cast(nodes[0], tf.int64)
        for node in nodes[1:]:
            path = path * self.nodes + tf.cast(node, tf.int64)
        return path

    def _log_softmax(self, users: Any, chosen: list[Any]) -> Any:
        """Returns the log probability of each next node float32[n, b, K], after the prefixes int32[n, b] of each layer.

        The kernel's product with a node's vector is computed once for each node, not for each prefix.
        """
        d, weights = len(chosen), self.weights
        hidden = tf.matmul(users, weights[f"user_{d}"])[:, None] + weights[f"hidden_bias_{d}"]
        for e, node in enumerate(chosen):
            hidden += tf.gather(tf.matmul(weights[f"vectors_{e}"], weights[f"prefix_{d}_{e}"]), node)
        logits = tf.einsum("nbh,hk->nbk", tf.nn.relu(hidden), weights[f"nodes_{d}"]) + weights[f"nodes_bias_{d}"]
        return tf.nn.log_softmax(logits)


def log_sum_loss(log_probability: Any, weights: Any) -> Any:
    """Returns sum_i -weight_i log sum_j p(c_ij | x_i) of log p float32[n, j]; an item without a path costs nothing."""
    known = tf.reduce_any(tf.math.is_finite(log_probability), axis=1)
    safe = tf.where(known[:, None], log_probability, 0.0)
    return -tf.reduce_sum(tf.where(known, weights * tf.reduce_logsumexp(safe, axis=1), 0.0))
