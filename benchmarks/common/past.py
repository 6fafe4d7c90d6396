"""What the slots of a source held of each exposure's user and item, for a whole log at once (docs/profiles.md).

    past = Past(exposures, source.declaration, source.slots)
    past.counts(slot, "7d", "click")       # of the exposure's own user and value: int64[n]
    past.lists(slot, "click")              # (the values shown most in its window, those clicked last)

It counts what had happened before the time of each exposure, or before `as_of_ms`. The profile store answers one
profile at one time; a test compares both.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streaming.declaration import Declaration
from streaming.example import Ragged
from streaming.exposures import Exposure
from streaming.slots import BY_ITEM, SHOWN, WINDOWS, Slot, Slots
from streaming.sources.kuairand import before

Int64s = NDArray[np.int64]
NEVER = -1


class Past:
    """The counts at `as_of_ms` int64[n], by default at the time of each exposure. Exposures are in event order."""

    def __init__(
        self, exposures: Sequence[Exposure], declaration: Declaration, slots: Slots, as_of_ms: Int64s | None = None
    ) -> None:
        self.slots, self._exposures = slots, exposures
        self.ts_ms = np.array([e.ts_ms for e in exposures], np.int64)
        self.as_of_ms = self.ts_ms if as_of_ms is None else as_of_ms
        self._at_ms = {SHOWN: self.ts_ms} | {
            task: self._times(task, declaration.window_ms) for task in slots.actions[1:]
        }

    def _times(self, task: str, window_ms: int) -> Int64s:
        """When the action counted; NEVER if it did not happen within the window."""
        at_ms = np.array([e.outcomes.get(task, NEVER) for e in self._exposures], np.int64)
        return np.where(at_ms <= self.ts_ms + window_ms, at_ms, NEVER)

    def _values(self, slot: Slot) -> list[Sequence[int]]:
        """The values that each exposure counts by."""
        if slot.by in ("", BY_ITEM):
            return [(e.item_id if slot.by else 0,) for e in self._exposures]
        found = (e.features[slot.by] for e in self._exposures)
        return [(value,) if isinstance(value, int) else list(dict.fromkeys(value)) for value in found]

    def _profiles(self, slot: Slot) -> Int64s:
        return np.array([e.user_id if slot.entity == "user" else e.item_id for e in self._exposures], np.int64)

    def counts(self, slot: Slot, window: str, action: str) -> Int64s:
        """The count of an action of each exposure's profile and value; summed if it has several values."""
        rows, keys = self._keys(slot)
        at_ms, now_ms = self._at_ms[action][rows], self.as_of_ms[rows]
        happened = at_ms != NEVER
        events = keys[happened], at_ms[happened], keys
        counts = before(*events, now_ms)
        if WINDOWS[window].ms:
            length_ms, hop_ms = WINDOWS[window]
            counts = counts - before(*events, (now_ms - length_ms) // hop_ms * hop_ms)
        return np.bincount(rows, counts, len(self.ts_ms)).astype(np.int64)

    def _keys(self, slot: Slot) -> tuple[Int64s, Int64s]:
        """The row of each counted value, and a number for each pair of profile and value."""
        values = self._values(slot)
        rows = np.repeat(np.arange(len(values)), [len(some) for some in values])
        flat = np.array([value for some in values for value in some], np.int64)
        _, codes = np.unique(flat, return_inverse=True)
        _, owners = np.unique(self._profiles(slot)[rows], return_inverse=True)
        return rows, owners * (int(codes.max(initial=0)) + 1) + codes

    def newest_ms(self, slot: Slot) -> Int64s:
        """The time of the newest exposure of each exposure's profile; NEVER before the first one."""
        _, owners = np.unique(self._profiles(slot), return_inverse=True)
        order = np.lexsort((self.ts_ms, owners))
        first = np.searchsorted(owners[order], owners)
        place = first + before(owners, self.ts_ms, owners, self.as_of_ms) - 1
        return np.where(place >= first, self.ts_ms[order][np.maximum(place, 0)], NEVER)

    def lists(self, slot: Slot, action: str) -> tuple[Ragged, Ragged]:
        """Of each exposure's profile: the values shown most in the slot's widest window, those of the action last."""
        values, profiles = self._values(slot), self._profiles(slot)
        found: list[tuple[list[int], list[int]]] = [([], [])] * len(values)
        order = np.argsort(profiles, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(profiles[order])) + 1):
            self._walk(rows.tolist(), values, slot, self._at_ms[action], found)
        return _ragged([most for most, _ in found]), _ragged([last for _, last in found])

    def _walk(
        self, rows: list[int], values: list[Sequence[int]], slot: Slot, at_ms: Int64s,
        found: list[tuple[list[int], list[int]]],
    ) -> None:  # fmt: skip
        """Fills `found` for the exposures of one profile, in event order."""
        window = WINDOWS[max(slot.windows, key=list(WINDOWS).index)]
        exposed = deque((int(self.ts_ms[row]), row) for row in rows)
        acted = deque(sorted((int(at_ms[row]), row) for row in rows if at_ms[row] != NEVER))
        held: deque[tuple[int, int]] = deque()
        shown: Counter[int] = Counter()
        newest: dict[int, int] = {}
        for row in rows:
            now_ms = int(self.as_of_ms[row])
            while exposed and exposed[0][0] < now_ms:
                held.append(exposed.popleft())
                shown.update(values[held[-1][1]])
            while acted and acted[0][0] < now_ms:
                acted_ms, of = acted.popleft()
                newest |= dict.fromkeys(values[of], acted_ms)
            begin_ms = window.begin_ms(now_ms)
            while held and held[0][0] < begin_ms:
                shown.subtract(values[held.popleft()[1]])
            most = sorted((-count, value) for value, count in shown.items() if count > 0)
            last = sorted((-acted_ms, value) for value, acted_ms in newest.items() if acted_ms >= begin_ms)
            found[row] = [value for _, value in most[: slot.top]], [value for _, value in last[: slot.top]]


def _ragged(lists: list[list[int]]) -> Ragged:
    splits = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Ragged(np.array([value for some in lists for value in some], np.int64), splits)
