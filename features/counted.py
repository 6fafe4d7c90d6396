"""The columns of the counted views: what the slots of a source give of each user and item, and how they are read.

    counted = Counted(slots)
    counted.columns["counters"]                    # the columns of all slots of items
    counted.read(profiles, "counters", ["item_shown_1h"], item_ids, now_ms)     # column -> value of each item

A slot without `by` has numbers, and a slot with `by` has lists of its `top` values:

    user_click_1h, user_click_rate_1h, user_click_ms      counts and rates of each window, the time of the newest
    user_author_7d, user_author_click_7d                  the values shown most, and the counts of each of them
    user_author_click_last                                the values that were clicked last, newest first

Counts are 0 and lists are empty where nothing happened. A rate without an impression, and a time, are None then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from features.profile.query import Answer, Query
from streaming.slots import SHOWN, WINDOWS, Slot, Slots
from streaming.views import Column

ENTITY: dict[str, Literal["user", "item"]] = {"activity": "user", "counters": "item"}
"""Counted view -> the entity whose profiles it shows."""


class Reads(Protocol):
    """What answers queries: the profile store, or its past."""

    def read(self, entity: str, profiles: Sequence[int], queries: Sequence[Query], now_ms: int) -> list[Answer]: ...


class _Of(NamedTuple):
    """How a column follows from the answer of one query."""

    query: Query
    values: Callable[[Answer], list[Any]]


class Counted:
    """The columns of both counted views of a source. Raises ValueError if two slots give one name."""

    def __init__(self, slots: Slots) -> None:
        self._of: dict[str, dict[str, _Of]] = {}
        self.columns: dict[str, tuple[Column, ...]] = {}
        for view, entity in ENTITY.items():
            named = [
                entry for slot in slots.of(entity) for entry in (_lists if slot.by else _numbers)(slot, slots.actions)
            ]
            names = [column.name for column, _ in named]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"slots: two give the column {twice[0]!r}, allowed are names that give it once")
            self._of[view] = {column.name: of for column, of in named}
            self.columns[view] = tuple(column for column, _ in named)

    def read(
        self, profiles: Reads, view: str, names: Sequence[str], keys: Sequence[int], now_ms: int
    ) -> dict[str, list[Any]]:
        """Reads columns of a view at a time of event time: a value of each key."""
        asked = {name: self._of[view][name] for name in names}
        queries = list(dict.fromkeys(of.query for of in asked.values()))
        answers = dict(zip(queries, profiles.read(ENTITY[view], keys, queries, now_ms), strict=True)) if queries else {}
        return {name: of.values(answers[of.query]) for name, of in asked.items()}


def _numbers(slot: Slot, actions: tuple[str, ...]) -> Iterator[tuple[Column, _Of]]:
    """Counts and rates of each window, and the times of the newest events. The counts are under the feature id 0."""
    for window in slot.windows:
        query = Query(slot.name, window)
        for place, action in enumerate(actions):
            yield Column(f"{slot.name}_{action}_{window}", "int"), _Of(query, partial(_counts, place=place))
        for place, action in enumerate(actions[1:], 1):
            yield Column(f"{slot.name}_{action}_rate_{window}", "number"), _Of(query, partial(_rates, place=place))
    query = Query(slot.name, _widest(slot))
    for place, action in enumerate(actions):
        yield Column(f"{slot.name}_{action}_ms", "int"), _Of(query, partial(_times, place=place))


def _lists(slot: Slot, actions: tuple[str, ...]) -> Iterator[tuple[Column, _Of]]:
    """The values shown most in each window with their counts, and the values of each action's newest events."""
    for window in slot.windows:
        query = Query(slot.name, window, by=SHOWN, k=slot.top)
        yield Column(f"{slot.name}_{window}", "ints"), _Of(query, _split_features)
        for place, action in enumerate(actions):
            of = _Of(query, partial(_split_counts, place=place))
            yield Column(f"{slot.name}_{action}_{window}", "ints"), of
    for action in actions:
        query = Query(slot.name, _widest(slot), by="time", action=action, k=slot.top)
        yield Column(f"{slot.name}_{action}_last", "ints"), _Of(query, _split_features)


def _widest(slot: Slot) -> str:
    return max(slot.windows, key=list(WINDOWS).index)


def _counts(answer: Answer, place: int) -> list[int]:
    """The count of an action of each profile; 0 if it has none."""
    counts = np.zeros(len(answer.offsets) - 1, np.int64)
    there = answer.offsets[:-1] < answer.offsets[1:]
    counts[there] = answer.counts[answer.offsets[:-1][there], place]
    values: list[int] = counts.tolist()
    return values


def _rates(answer: Answer, place: int) -> list[float | None]:
    pairs = zip(_counts(answer, place), _counts(answer, 0), strict=True)
    return [count / shown if shown > 0 else None for count, shown in pairs]


def _times(answer: Answer, place: int) -> list[int | None]:
    newest: list[int | None] = [None] * (len(answer.offsets) - 1)
    for k, (begin, end) in enumerate(zip(answer.offsets[:-1].tolist(), answer.offsets[1:].tolist(), strict=True)):
        if begin < end:
            newest[k] = int(answer.last_ms[begin, place]) or None
    return newest


def _split_features(answer: Answer) -> list[list[int]]:
    return _split(answer, answer.features)


def _split_counts(answer: Answer, place: int) -> list[list[int]]:
    return _split(answer, answer.counts[:, place])


def _split(answer: Answer, values: Any) -> list[list[int]]:
    """The values of each profile's features."""
    flat, ends = values.tolist(), answer.offsets.tolist()
    return [flat[begin:end] for begin, end in zip(ends[:-1], ends[1:], strict=True)]
