"""Decides which cut carries the dense weights, and with which of them the replicas get new ones (docs/delta.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from delta_log.files import Float32s, Weight
from training.learn.learner import Learner


class DenseCut(NamedTuple):
    """The dense weights of a cut: {} if they did not change. `served` are those that are served after it.

    `serves` tells that these are the weights of this cut; else they are those of an earlier one.
    """

    weights: dict[str, Weight]
    served: dict[str, Float32s]
    serves: bool
    since: int


class DenseSync:
    """The dense weights as the newest manifest has them, and as they are served; replicas get each `every`-th delta's.

    `since` counts the deltas after the one whose weights are served.
    """

    def __init__(self, learner: Learner, every: int) -> None:
        self._learner, self._every = learner, every
        self.restored({}, {}, 0)

    def restored(self, weights: Mapping[str, Weight], served: Mapping[str, Float32s], since: int) -> None:
        """Continues with the weights of a chain: those of training, and those that are served."""
        self._weights, self._served, self._since = dict(weights), dict(served), since

    def cut(self, whole: bool) -> DenseCut:
        """Copies the weights, if they changed since the newest manifest or replicas are to get them now."""
        slots = self._learner.slots
        now = {n: Weight(w.numpy(), slots[n].numpy().ravel()) for n, w in self._learner.weights.items()}
        values = {name: weight.value for name, weight in now.items()}
        serves = whole or (self._since + 1 >= self._every and not _same(values, self._served))
        if serves:
            return DenseCut(now, values, True, 0)
        changed = any(n not in self._weights or not _same_weight(w, self._weights[n]) for n, w in now.items())
        return DenseCut(now if changed else {}, self._served, False, self._since + 1)

    def committed(self, cut: DenseCut) -> None:
        """Marks the cut's weights as those of the newest manifest."""
        self.restored(cut.weights or self._weights, cut.served, cut.since)


def _same_weight(one: Weight, other: Weight) -> bool:
    return np.array_equal(one.value, other.value) and np.array_equal(one.slots, other.slots)


def _same(one: Mapping[str, Float32s], other: Mapping[str, Float32s]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(value, other[name]) for name, value in one.items())
