"""One trial of Deep Retrieval: a softmax model of items, its paths learned jointly, both judged on the same users.

The user's vector is a layer over the mean of their recent items and their five newest ones. The softmax over all items
is the reranker, and alone, over all items, it is brute force: the list that retrieval has to find. So the comparison is
between the candidates alone. First the softmax model learns, then the items get their first paths, then rounds: learn
the paths jointly, gather path scores, do a mapping step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from benchmarks.retrievers.histories import Histories
from training.models.retrieval.mapping import Penalty, mapping_step
from training.models.retrieval.network import PathNetwork, log_sum_loss
from training.models.retrieval.scores import PathScores, merged
from training.models.retrieval.start import first_paths

NEWEST, TOP = 5, 10
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """The settings of a trial.

    `warm` epochs of the softmax model alone, `joint` ones with the first paths, then `rounds` of `part` of the pairs
    and a mapping step each, then `final` epochs of the paths. `scored` pairs give a mapping step its path
    scores, `listed` a list. `wanted`, `cap` and `margin` are those of mapping.py.
    """

    nodes: int = 50
    layers: int = 3
    paths: int = 3
    listed: int = 250
    wanted: float = 2.0
    cap: int = 5
    warm: float = 3.0
    joint: float = 1.0
    rounds: int = 2
    part: float = 0.5
    final: float = 1.0
    batch: int = 512
    dim: int = 48
    hidden: int = 128
    rate: float = 2e-3
    scored: int = 30_000
    margin: float = 3.0


class Trial:
    """The model of a trial; `watch` has the state of the paths after each mapping step."""

    def __init__(self, data: Histories, setting: Setting, seed: int) -> None:
        keras.utils.set_random_seed(seed)
        self.data, self.setting, self.seed = data, setting, seed
        self.random = np.random.default_rng(seed)
        items, dim = data.items + 1, setting.dim
        frequency = np.log((data.positives + 0.5) / len(data.target))
        self.inside = keras.Variable(tf.random.normal([items, dim], stddev=0.05))
        self.outside = keras.Variable(tf.random.normal([items, dim], stddev=0.05))
        self.bias = keras.Variable(frequency.astype(np.float32))
        self.kernel = keras.Variable(keras.initializers.GlorotUniform(seed=seed)(((NEWEST + 1) * dim, dim)))
        self.softmax = [self.inside, self.outside, self.bias, self.kernel]
        self.network = PathNetwork(dim, nodes=setting.nodes, layers=setting.layers, hidden=setting.hidden, seed=seed)
        self.network.weights = {name: keras.Variable(v) for name, v in self.network.weights.items()}
        self.of_paths = list(self.network.weights.values())
        self.adam = [keras.optimizers.Adam(setting.rate), keras.optimizers.Adam(setting.rate)]
        self.paths = np.full((items, setting.paths), -1, np.int64)
        self.sizes = np.zeros(self.network.paths, np.int64)
        self.lists = PathScores.empty(items, setting.listed)
        self.watch: list[dict[str, float]] = []
        self._step = {kind: tf.function(getattr(self, f"_{kind}"), reduce_retracing=True) for kind in ("warm", "joint")}
        self._beam = tf.function(lambda h: self.network.beam(self.users(h), setting.listed), reduce_retracing=True)

    def users(self, history: Any) -> Any:
        """Returns the vectors float32[n, dim] of histories int32[n, RECENT]."""
        rows = tf.gather(self.inside.value, history) * tf.cast(history > 0, tf.float32)[:, :, None]
        count = tf.reduce_sum(tf.cast(history > 0, tf.float32), axis=1, keepdims=True)
        mean = tf.reduce_sum(rows, axis=1) / tf.maximum(count, 1)
        newest = tf.reshape(rows[:, -NEWEST:], [-1, NEWEST * self.setting.dim])
        return tf.matmul(tf.concat([mean, newest], axis=1), self.kernel.value)

    def logits(self, users: Any) -> Any:
        return tf.matmul(users, self.outside.value, transpose_b=True) + self.bias.value

    def learn(self) -> None:
        s = self.setting
        for batch in self._batches(s.warm):
            self._step["warm"](*batch)
        liked = np.argsort(-self.data.positives[1:], kind="stable") + 1
        vectors = self.outside.value.numpy()[liked]
        self.paths[liked] = first_paths(
            vectors, nodes=s.nodes, layers=s.layers, paths=s.paths, cap=s.cap, seed=self.seed
        )
        self.sizes = np.bincount(self.paths[self.paths >= 0], minlength=self.network.paths)
        self._paths_epochs(s.joint)
        for _ in range(s.rounds):
            self._map()
            self._paths_epochs(s.part)
        self._paths_epochs(s.final)

    def _paths_epochs(self, epochs: float) -> None:
        for history, target in self._batches(epochs):
            self._step["joint"](history, target, tf.constant(self.paths[target.numpy()]))

    def _map(self) -> None:
        """Scores the paths of a sample of pairs from nothing, then does one mapping step over all items."""
        s, data = self.setting, self.data
        sample = self.random.permutation(len(data.target))[: s.scored]
        lists = PathScores.empty(data.items + 1, s.listed)
        for begin in range(0, len(sample), 2048):
            these = sample[begin : begin + 2048]
            found, log_p = self._beam(tf.constant(data.history[these]))
            items, at = np.unique(data.target[these], return_inverse=True)
            old = PathScores(*(part[items] for part in lists))
            new = merged(old, at, found.numpy(), np.exp(log_p.numpy()), eta=1.0)
            for part, rows in zip(lists, new, strict=True):
                part[items] = rows
        penalty = Penalty.of_size(s.wanted, float(lists.positives[1:].mean()), s.cap)
        step = mapping_step(lists, self.paths, self.sizes, penalty, margin=s.margin)
        self.paths = step.paths
        used = self.sizes > 0
        self.watch.append({"used": int(used.sum()), "largest": int(self.sizes.max()), "moved": step.moved / data.items})

    def judge(self, width: int) -> dict[str, float]:
        """Compares the lists of the judged users, of `width` paths, with brute force's and with the popular items'.

        All lists are ranked by the same model. `recall_ratio` is the recall of the paths' list / brute force's.
        `brute_vs_popular` is brute force's recall / that of the best popular list: below 1.1 the trial proves nothing,
        since brute force itself has learned nothing.
        """
        data = self.data
        users = self.users(tf.constant(data.known))
        scores = np.where(data.seen, -np.inf, self.logits(users).numpy())
        every = np.arange(data.items + 1)
        best = [_best(every, row) for row in scores]
        found = self._found(self.network.beam(users, width)[0].numpy())
        size = round(float(np.mean([len(items) for items in found])))
        popular = np.argsort(-data.positives, kind="stable")
        lists = {n: [_best(popular[:n], row) for row in scores] for n in sorted({TOP, size, data.items // 10})}
        ours = [_best(items, row) for items, row in zip(found, scores, strict=True)]
        recall = self._recall(best)
        return {
            "width": width, "candidates": size,
            "overlap": overlap(best, ours), "popularity": overlap(best, lists[size]),
            "recall": recall, "recall_ratio": self._recall(ours) / recall,
            "brute_vs_popular": recall / max(self._recall(popular) for popular in lists.values()),
            "used_share": float((self.sizes > 0).sum() / data.items), "largest": int(self.sizes.max()),
        }  # fmt: skip

    def _found(self, beam: Ints) -> list[Ints]:
        """Returns the items at the paths of each user's beam int64[users, width], each once."""
        of_path: dict[int, list[int]] = {}
        for item, paths in enumerate(self.paths.tolist()):
            for path in paths:
                of_path.setdefault(path, []).append(item)
        return [
            np.array(sorted({item for path in row for item in of_path.get(path, ())}), np.int64)
            for row in beam.tolist()
        ]

    def _recall(self, lists: list[list[int]]) -> float:
        return float(np.mean([row[items].sum() / row.sum() for row, items in zip(self.data.liked, lists, strict=True)]))

    def _batches(self, epochs: float) -> Iterator[tuple[Any, Any]]:
        batch, total = self.setting.batch, len(self.data.target)
        left = round(epochs * total / batch)
        while left > 0:
            order = self.random.permutation(total)
            for begin in range(0, min(total // batch, left) * batch, batch):
                these = order[begin : begin + batch]
                yield tf.constant(self.data.history[these]), tf.constant(self.data.target[these])
            left -= total // batch

    def _warm(self, history: Any, target: Any) -> None:
        with tf.GradientTape() as tape:
            loss = self._softmax_loss(self.users(history), target)
        gradients = tape.gradient(loss, [v.value for v in self.softmax])
        self.adam[0].apply(_dense(gradients), self.softmax)

    def _joint(self, history: Any, target: Any, paths: Any) -> None:
        with tf.GradientTape() as tape:
            users = self.users(history)
            ones = tf.ones([tf.shape(target)[0]])
            path_loss = log_sum_loss(self.network.log_probability(users, paths), ones) / self.setting.batch
            loss = self._softmax_loss(users, target) + path_loss
        gradients = _dense(tape.gradient(loss, [v.value for v in [*self.softmax, *self.of_paths]]))
        self.adam[0].apply(gradients[: len(self.softmax)], self.softmax)
        self.adam[1].apply(gradients[len(self.softmax) :], self.of_paths)

    def _softmax_loss(self, users: Any, target: Any) -> Any:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=self.logits(users)))


def _dense(gradients: list[Any]) -> list[Any]:
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


def overlap(best: list[list[int]], lists: list[list[int]]) -> float:
    """Returns the mean share of the best items that the lists have, too."""
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(best, lists, strict=True)]))


def _best(items: Ints, scores: NDArray[np.float32]) -> list[int]:
    known = items[np.isfinite(scores[items])]
    best: list[int] = known[np.argsort(-scores[known])[:TOP]].tolist()
    return best
