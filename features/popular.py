"""The items that were shown most in each window: lists that the push keeps, and that a read finds ready.

    popular = Popular()
    popular.add(items, times, counts)
    note = popular.lists(now_ms)               # of each window the first MOST items; bytes for the profile store
    listed(note, "1h")[:10]

Of equal counts in a window the next wider window decides, then the smaller id. Each window has the edges of
streaming/slots.py, so the lists equal a count of the events.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaming.slots import WINDOWS

Int64s = NDArray[np.int64]
MOST = 1000
"""The items of a list at most."""
_AT_ONCE = 50_000
"""So many adds of a slice wait at least, before they are merged."""
_FINITE = [name for name, window in WINDOWS.items() if window.ms]


class _Slice:
    """The adds of one piece of time, merged now and then to a count an item."""

    def __init__(self) -> None:
        self._merged, self._waiting, self._n = np.empty((2, 0), np.int64), [], 0  # type: Int64s, list[Int64s], int

    def add(self, adds: Int64s) -> None:
        self._waiting.append(adds)
        self._n += adds.shape[1]
        if self._n > _AT_ONCE + self._merged.shape[1]:
            self._merged, self._waiting, self._n = self.counts(), [], 0

    def counts(self) -> Int64s:
        """Items in order and their counts, int64[2, n]."""
        items, counts = np.concatenate([self._merged, *self._waiting], 1)
        ids, at = np.unique(items, return_inverse=True)
        return np.stack([ids, np.bincount(at, counts, len(ids)).astype(np.int64)])


class Popular:
    """The counts of all items in each window of WINDOWS, up to the clock of the last `lists`."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.int64)
        self._totals = np.zeros((len(WINDOWS), 0), np.int64)
        self._slices: dict[str, dict[int, _Slice]] = {name: {} for name in _FINITE}
        self._begins = dict.fromkeys(_FINITE, 0)

    def add(self, items: Int64s, times: Int64s, counts: Int64s) -> None:
        """Counts impressions of items: columns of n adds."""
        if new := np.setdiff1d(items, self._ids).tolist():
            places = np.searchsorted(self._ids, new)
            self._ids, self._totals = np.insert(self._ids, places, new), np.insert(self._totals, places, 0, 1)
        for row, name in enumerate(WINDOWS):
            if name not in _FINITE:
                self._change(row, items, counts)
                continue
            slices = times // WINDOWS[name].hop_ms
            for number in np.unique(slices[slices >= self._begins[name]]).tolist():
                adds = np.stack([items, counts])[:, slices == number]
                self._slices[name].setdefault(number, _Slice()).add(adds)
                self._change(row, *adds)

    def _change(self, row: int, items: Int64s, counts: Int64s) -> None:
        np.add.at(self._totals[row], np.searchsorted(self._ids, items), counts)

    def lists(self, now_ms: int) -> bytes:
        """Of each window the items that were shown most, at `now_ms` of event time. Time does not go back."""
        for row, name in enumerate(_FINITE):
            window = WINDOWS[name]
            self._begins[name] = max(self._begins[name], window.begin_ms(now_ms) // window.hop_ms)
            for number in [n for n in self._slices[name] if n < self._begins[name]]:
                items, counts = self._slices[name].pop(number).counts()
                self._change(row, items, -counts)
        lists: list[Int64s] = []
        for row in reversed(range(len(WINDOWS))):
            wider = lists[-1] if lists else self._ids[:0]
            first = self._first(row)
            lists.append(np.concatenate([first, wider[~np.isin(wider, first)]])[:MOST])
        lengths = np.array([len(items) for items in reversed(lists)], "<i8")
        return lengths.tobytes() + b"".join(items.astype("<i8").tobytes() for items in reversed(lists))

    def _first(self, row: int) -> Int64s:
        """The first items of those that were shown in a window."""
        totals = self._totals[row]
        at = np.flatnonzero(totals > 0)
        if len(at) > MOST:
            at = at[totals[at] >= np.partition(totals[at], -MOST)[-MOST]]
        order = np.lexsort((self._ids[at], *(-wider[at] for wider in self._totals[row:][::-1])))
        first: Int64s = self._ids[at[order][:MOST]]
        return first


def listed(note: bytes, window: str) -> list[int]:
    """The list of a window, from what `lists` returned."""
    names = list(WINDOWS)
    numbers: Any = np.frombuffer(note, "<i8")
    ends = np.cumsum(numbers[: len(names)]) + len(names)
    k = names.index(window)
    items: list[int] = numbers[ends[k] - numbers[k] : ends[k]].tolist()
    return items
