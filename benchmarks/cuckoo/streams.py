"""Batches of unique ids: uniform, or the distinct ids of a zipf stream in the order of their first occurrence.

An id is a place 0 .. n - 1 for dense tables, and the int64 hash of that place for hash tables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaming.hashing import mix64

EXPONENT = 1.05


class Ids(NamedTuple):
    """One batch: int64[n] each."""

    places: NDArray[np.int64]
    keys: NDArray[np.int64]


def keys_of(places: NDArray[Any]) -> NDArray[np.int64]:
    return mix64(places.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


class Stream:
    """Batches of `n` ids by `kind`, uniform or zipf: `stream.batches(size, count)`."""

    def __init__(self, n: int, kind: str, seed: int = 0) -> None:
        self.n, self.kind = n, kind
        self._rng = np.random.default_rng([seed, n])
        if kind == "zipf":
            self._sums = np.cumsum(np.arange(1, n + 1) ** -EXPONENT)
            self._place = self._rng.permutation(n)  # the hot rows are not neighbours

    def batches(self, size: int, count: int) -> list[Ids]:
        return [Ids(places, keys_of(places)) for places in (self._unique(size) for _ in range(count))]

    def _unique(self, size: int) -> NDArray[np.int64]:
        drawn = np.zeros(0, np.int64)
        while True:
            drawn = np.concatenate([drawn, self._draw(2 * size)])
            first = np.sort(np.unique(drawn, return_index=True)[1])
            if len(first) >= size:
                return drawn[first[:size]]

    def _draw(self, size: int) -> NDArray[np.int64]:
        if self.kind == "uniform":
            return self._rng.integers(0, self.n, size)
        ranks = np.searchsorted(self._sums, self._rng.random(size) * self._sums[-1])
        return self._place[np.minimum(ranks, self.n - 1)]
