"""Exposures, and the judge of those that a source gives: history and live alike, by the contract of the topics.

    for exposure in judged("history", source.history, declaration): ...     # InputError names the impression

A history has millions. So the judge looks at whole columns of `AT_ONCE` exposures first, and at each exposure on its
own only if one of them is not plainly in order.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from operator import itemgetter, le
from typing import Any, NamedTuple

import numpy as np

from common.errors import InputError
from streaming.contract.contract import Contract
from streaming.contract.schema import MAX_TIME_MS, BadMessage, plain, rule, shown
from streaming.declaration import RESERVED_IDS, Declaration
from streaming.topics import ACTIONS, IMPRESSIONS

AT_ONCE = 1024
EARLIEST_MS = 10**11
"""March 1973. An earlier time is one in seconds."""


class Exposure(NamedTuple):
    """One item shown to one user. `outcomes` is action -> the time of the user's action (ms, >= ts_ms).

    `values` is action -> its value, a number >= 0 such as seconds of watching; 1 if it is absent.

    Numbers of NumPy and pandas are as good as Python's, and a tuple or an array of ids as good as a list.
    """

    impression_id: str
    user_id: int
    item_id: int
    ts_ms: int
    features: dict[str, Any]
    outcomes: dict[str, int]
    values: dict[str, float] = {}


def judged(part: str, read: Callable[[], Iterable[Exposure]], declaration: Declaration) -> Iterator[Exposure]:
    """The exposures that `read` gives, with plain numbers and lists. Raises InputError at the first wrong one.

    `part` is history or live, for the error. An impression_id that comes again far from its first place is an error
    when all were read.
    """
    judge, ids = _Judge(part, declaration), array("q")
    rest = iter(read())
    while chunk := list(islice(rest, AT_ONCE)):
        chunk = judge.passed(chunk)
        yield from chunk
        ids.extend(map(hash, map(itemgetter(0), chunk)))
    if repeated := _repeated(np.array(ids, np.int64), read):
        raise judge.error(repeated, "comes twice, allowed is an impression_id of its own for each exposure")


def _repeated(hashes: Any, read: Callable[[], Iterable[Exposure]]) -> str | None:
    """An impression_id that comes twice, if there is one. Equal hashes are few, and looked up in the source again."""
    ordered = np.sort(hashes)
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: set[str] = set()
    for exposure in read() if twice else ():
        if hash(exposure.impression_id) in twice:
            if exposure.impression_id in seen:
                return exposure.impression_id
            seen.add(exposure.impression_id)
    return None


class _Judge:
    """Judges a source's exposures in their order."""

    def __init__(self, part: str, declaration: Declaration) -> None:
        self._part, self._declaration, self._contract = part, declaration, Contract(declaration)
        self._columns = [(f.name, f.kind, itemgetter(f.name)) for f in declaration.features]
        self._tasks = frozenset(declaration.tasks)
        self._most_ids: int = rule("ids")["maxItems"]
        self._most_bytes: int = rule("key")["maxBytes"]
        self._number_limit: float = rule("number")["exclusiveMaximum"]
        self._last_ms = EARLIEST_MS

    def error(self, impression_id: object, reason: str) -> InputError:
        return InputError(f"{self._part}: impression {shown(impression_id)}: {reason}")

    def passed(self, chunk: list[Exposure]) -> list[Exposure]:
        """The exposures, in plain numbers and lists. Raises InputError."""
        if not self._is_fine(chunk):
            chunk = [self._plain(exposure) for exposure in chunk]
            if not self._is_fine(chunk):
                self._judge_each(chunk)
        self._last_ms = chunk[-1].ts_ms
        return chunk

    def _is_fine(self, chunk: Sequence[Exposure]) -> bool:
        """Whether all exposures are in order for certain: a few passes over whole columns, without an error's text."""
        if set(map(type, chunk)) != {Exposure}:
            return False
        names, users, items, times, features, outcomes, values = zip(*chunk, strict=True)
        return (
            self._are_names(names)
            and set(map(type, times)) == {int}
            and times[-1] <= MAX_TIME_MS
            and all(map(le, (self._last_ms, *times), times))
            and set(map(type, features)) == {dict} == set(map(type, outcomes))
            and self._are_outcomes(times, outcomes)
            and self._are_values(outcomes, values)
            and self._are_features(users, items, features)
        )

    def _are_names(self, names: Sequence[Any]) -> bool:
        if set(map(type, names)) != {str} or len(set(names)) < len(names):
            return False
        try:
            sizes = list(map(len, map(str.encode, names)))
        except UnicodeEncodeError:
            return False
        return 1 <= min(sizes) <= max(sizes) <= self._most_bytes

    def _are_outcomes(self, times: Sequence[int], outcomes: Sequence[dict[Any, Any]]) -> bool:
        shown_ms = chain.from_iterable(map(repeat, times, map(len, outcomes)))
        at_ms = list(chain.from_iterable(map(dict.values, outcomes)))
        return not at_ms or (
            set(chain.from_iterable(outcomes)) <= self._tasks
            and set(map(type, at_ms)) == {int}
            and max(at_ms) <= MAX_TIME_MS
            and all(map(le, shown_ms, at_ms))
        )

    def _are_values(self, outcomes: Sequence[dict[Any, Any]], values: Sequence[Any]) -> bool:
        if set(map(type, values)) != {dict}:
            return False
        packed = _packed(list(chain.from_iterable(map(dict.values, values))), "d", {int, float})
        in_range = packed is not None and bool(np.all((packed >= 0) & (packed < self._number_limit)))
        return in_range and all(value.keys() <= outcome.keys() for outcome, value in zip(outcomes, values, strict=True))

    def _are_features(self, users: Sequence[Any], items: Sequence[Any], rows: Sequence[dict[Any, Any]]) -> bool:
        whole: list[Iterable[Any]] = [users, items]
        numbers, present = [], 0
        for name, kind, of_row in self._columns:
            try:
                column = list(map(of_row, rows))
            except KeyError:
                column = [row[name] for row in rows if name in row]
            present += len(column)
            if kind == "number":
                numbers.append(column)
            elif kind == "id":
                whole.append(column)
            elif column and (set(map(type, column)) != {list} or max(map(len, column)) > self._most_ids):
                return False
            else:
                whole.append(chain.from_iterable(column))
        undeclared = present < sum(map(len, rows))
        ids = _packed(list(chain.from_iterable(whole)), "q", {int})
        return (
            not undeclared
            and ids is not None
            and ids.min() > max(RESERVED_IDS)
            and self._are_numbers(list(chain.from_iterable(numbers)))
        )

    def _are_numbers(self, values: list[Any]) -> bool:
        packed = _packed(values, "d", {int, float})
        return packed is not None and bool(np.all(np.abs(packed) < self._number_limit))

    def _plain(self, exposure: Any) -> Exposure:
        if not isinstance(exposure, Exposure):
            raise InputError(f"{self._part} has {shown(exposure)}, allowed is a streaming.source.Exposure")
        *keys, features, outcomes, values = exposure
        for name, mapping in (("features", features), ("outcomes", outcomes), ("values", values)):
            if not isinstance(mapping, dict):
                raise self.error(exposure.impression_id, f"{name} is {shown(mapping)}, allowed is a dict")
        plainly = ({name: plain(value) for name, value in mapping.items()} for mapping in (features, outcomes, values))
        return Exposure(*map(plain, keys), *plainly)

    def _judge_each(self, chunk: Sequence[Exposure]) -> None:
        """Raises InputError for the first exposure that is wrong, if there is one."""
        last_ms, seen = self._last_ms, set()
        for e in chunk:
            try:
                self._judge(e)
            except BadMessage as bad:
                raise self.error(e.impression_id, str(bad)) from None
            if e.ts_ms < last_ms:
                raise self.error(e.impression_id, f"ts_ms is {e.ts_ms}, allowed is event order, {last_ms} or later")
            if e.impression_id in seen:
                raise self.error(e.impression_id, "comes twice, allowed is an impression_id of its own")
            last_ms = e.ts_ms
            seen.add(e.impression_id)

    def _judge(self, e: Exposure) -> None:
        """Raises BadMessage unless the contract and this exposure's declaration allow it."""
        for kind, names, declared in (
            ("feature", e.features, [name for name, *_ in self._columns]),
            ("outcome", e.outcomes, self._declaration.tasks),
        ):
            for name in names:
                if name not in declared:
                    raise BadMessage("task", f"{kind} is {shown(name)}, allowed are {', '.join(declared)}")
        self._contract.check(IMPRESSIONS, {**dict(zip(Exposure._fields[:4], e, strict=False)), "features": e.features})
        if e.ts_ms < EARLIEST_MS:
            raise BadMessage("range", f"ts_ms is {e.ts_ms}, allowed are milliseconds since 1970, {EARLIEST_MS} or more")
        for task, value in e.values.items():
            if task not in e.outcomes:
                allowed = ", ".join(e.outcomes) or "none"
                raise BadMessage("task", f"a value is of {shown(task)}, allowed are its outcomes: {allowed}")
            if type(value) not in (int, float) or not 0 <= value < self._number_limit:
                raise BadMessage("range", f"value of {task} is {shown(value)}, allowed is a number, 0 or more")
        for task, at_ms in e.outcomes.items():
            self._contract.check(ACTIONS, {"impression_id": e.impression_id, "action": task, "ts_ms": at_ms})
            if at_ms < e.ts_ms:
                raise BadMessage(
                    "order", f"outcome {task} is at {at_ms}, allowed is the impression's {e.ts_ms} or later"
                )


def _packed(values: list[Any], form: str, types: set[type]) -> Any:
    """The values as int64 (q) or float64 (d), None if one is of another type or size. The fastest check there is."""
    if not set(map(type, values)) <= types:
        return None
    try:
        return np.frombuffer(struct.pack(f"{len(values)}{form}", *values), form)
    except (struct.error, OverflowError):
        return None
