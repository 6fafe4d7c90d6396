"""Reads of profiles: a query, its check against the declared slots, and its answer from rows (docs/profiles.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from features.profile.rows import MAX_MS, Int64s, Rows, actions, slots, times
from streaming.contract.schema import shown
from streaming.slots import MINUTE_MS, SHOWN, WINDOWS, Slot, Slots

BY_TIME = "time"


@dataclass(frozen=True)
class Query:
    """What is read of each profile: the features of `slot` in `window`, with the counts of all actions.

    `by`: the action whose count orders the features, or "time": that of the newest event of `action`. `k`: only the
    first k, and only features whose count of `by` is above 0. `action`: only features whose count of it is above 0.
    `half_life_ms`: counts fade with age.
    """

    slot: str
    window: str
    by: str = SHOWN
    k: int | None = None
    action: str | None = None
    half_life_ms: int | None = None


class Answer(NamedTuple):
    """The features of n profiles, m in all: those of the i-th profile are at offsets[i] to offsets[i + 1]."""

    offsets: Int64s
    """int64[n + 1]"""
    features: Int64s
    """int64[m]"""
    counts: NDArray[Any]
    """int64[m, A], a column for each declared action; float64 with decay."""
    last_ms: Int64s
    """int64[m, A]: the time of each action's newest event in the window, 0 if there is none."""


class Checked(NamedTuple):
    """A query in numbers. `by` and `action`: places of actions; `by` -1: by time; `action` -1: any."""

    slot: int
    window: str
    by: int
    action: int
    k: int | None
    half_life_ms: int | None


def checked(query: Query, slots: Slots, entity: str) -> Checked:
    """Raises InputError for a query that does not fit the declared slots."""
    of_entity = {slot.name: place for place, slot in enumerate(slots.slots) if slot.entity == entity}
    if query.slot not in of_entity:
        raise InputError(f"slot is {shown(query.slot)}; allowed is {_names(of_entity)} of the {entity}")
    number = of_entity[query.slot]
    slot = slots.slots[number]
    if query.window not in slot.windows:
        raise InputError(f"slot {slot.name}: window is {shown(query.window)}; allowed is {_names(slot.windows)}")
    if query.by not in (BY_TIME, *slots.actions):
        raise InputError(f"slot {slot.name}: by is {shown(query.by)}; allowed is {_names((BY_TIME, *slots.actions))}")
    if query.action not in (None, *slots.actions):
        raise InputError(f"slot {slot.name}: action is {shown(query.action)}; allowed is {_names(slots.actions)}")
    _check_numbers(query, slot)
    by = -1 if query.by == BY_TIME else slots.actions.index(query.by)
    action = -1 if query.action is None else slots.actions.index(query.action)
    return Checked(number, query.window, by, action, query.k, query.half_life_ms)


def _check_numbers(query: Query, slot: Slot) -> None:
    for name in ("k", "half_life_ms"):
        value = getattr(query, name)
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"slot {slot.name}: {name} is {shown(value)}; allowed is None or a whole number from 1 on")
    if query.half_life_ms is not None and not WINDOWS[query.window].ms:
        finite = [name for name, window in WINDOWS.items() if window.ms]
        raise InputError(
            f"slot {slot.name}: half_life_ms is given for window {query.window}; allowed is {_names(finite)}"
        )


def _names(names: Any) -> str:
    *head, tail = names
    return f"{', '.join(head)} or {tail}" if head else str(tail)


class _Group(NamedTuple):
    """The rows of one slot in one window, and their sums by profile and feature, in this order."""

    at: Int64s
    """The places of the rows."""
    cell: Int64s
    """The place of each row's sum in a flat [groups, actions]."""
    owner: Int64s
    feature: Int64s
    counts: Int64s
    last_ms: Int64s


class Evaluation:
    """Answers queries from the rows of n profiles, whose owners are 0 to n - 1, at `now_ms`."""

    def __init__(self, rows: Rows, profiles: int, actions_declared: int, now_ms: int) -> None:
        self._rows, self._slots, self._times = rows, slots(rows.place), times(rows.place)
        self._profiles, self._width, self._now_ms = profiles, actions_declared, now_ms
        self._end_ms = now_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS
        self._groups: dict[tuple[int, str], _Group] = {}

    def answer(self, query: Checked) -> Answer:
        key = query.slot, query.window
        if key not in self._groups:
            self._groups[key] = self._group(*key)
        group = self._groups[key]
        values: NDArray[Any] = group.counts
        if query.half_life_ms is not None:
            values = np.zeros(values.shape)
            weights = np.exp2(-self._ages(group.at, query.window) / query.half_life_ms)
            np.add.at(values.reshape(-1), group.cell, self._rows.counts[group.at] * weights)
        chosen = self._chosen(query, group, values)
        return self._answer(group.owner[chosen], group.feature[chosen], values[chosen], group.last_ms[chosen])

    def _group(self, slot: int, window: str) -> _Group:
        """Sums the rows of a slot in a window: the queries that differ in the rest share it."""
        begin_ms = WINDOWS[window].begin_ms(self._now_ms)
        at = np.flatnonzero((self._slots == slot) & (self._times >= begin_ms) & (self._times < self._end_ms))
        at = at[np.lexsort((self._rows.feature[at], self._rows.owner[at]))]
        owner, feature = self._rows.owner[at], self._rows.feature[at]
        first = np.ones(len(at), bool)
        first[1:] = (owner[1:] != owner[:-1]) | (feature[1:] != feature[:-1])
        cell = (np.cumsum(first) - 1) * self._width + actions(self._rows.place[at])
        begins = np.flatnonzero(first)
        counts, last_ms = np.zeros((2, len(begins), self._width), np.int64)
        np.add.at(counts.reshape(-1), cell, self._rows.counts[at])
        np.maximum.at(last_ms.reshape(-1), cell, self._times[at])
        return _Group(at, cell, owner[begins], feature[begins], counts, last_ms)

    def _ages(self, at: Int64s, window: str) -> Int64s:
        """The ages of the middles of the rows' hops."""
        hop_ms = WINDOWS[window].hop_ms
        middle_ms = self._times[at] // hop_ms * hop_ms + hop_ms // 2
        return np.maximum(self._now_ms - middle_ms, 0)

    def _chosen(self, query: Checked, group: _Group, values: NDArray[Any]) -> Int64s:
        """The places of the features in the answer, in order. Counts that do not fade decide which ones are in it."""
        counts = group.counts
        kept: NDArray[np.bool_] = np.any(counts != 0, axis=1)
        if query.action >= 0:
            kept &= counts[:, query.action] > 0
        if query.by >= 0:
            ranked: NDArray[Any] = values[:, query.by]
            above = counts[:, query.by] > 0
        else:
            ranked = group.last_ms[:, query.action] if query.action >= 0 else group.last_ms.max(1)
            above = counts[:, query.action] > 0 if query.action >= 0 else np.any(counts > 0, axis=1)
        if query.k is not None:
            kept &= above
        places = np.flatnonzero(kept)
        owner = group.owner[places]
        order = np.lexsort((-ranked[places], owner))  # stable: equal ones stay in the order of their features
        if query.k is not None:
            owner = owner[order]
            first = np.searchsorted(owner, np.arange(self._profiles))
            order = order[np.arange(len(order)) - first[owner] < query.k]
        return places[order]

    def _answer(self, owner: Int64s, features: Int64s, counts: NDArray[Any], last_ms: Int64s) -> Answer:
        offsets = np.searchsorted(owner, np.arange(self._profiles + 1)).astype(np.int64)
        return Answer(offsets, features, counts, last_ms)


def spread(answer: Answer, owners: Int64s) -> Answer:
    """The answer of distinct profiles for a list of them: the i-th one is `owners`[i]."""
    lengths = np.diff(answer.offsets)[owners]
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    at = np.repeat(answer.offsets[:-1][owners] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Answer(offsets, answer.features[at], answer.counts[at], answer.last_ms[at])


def check_now(now_ms: Any) -> int:
    if type(now_ms) is not int or not 0 <= now_ms <= MAX_MS:
        raise InputError(f"now_ms is {shown(now_ms)}; allowed is a time in ms, 0 to {MAX_MS}")
    return now_ms
