"""The slots of a source: what the profile store counts of each user and each item, by time (docs/profiles.md).

A slot counts the impressions of a profile and each declared action of them, by the values of one feature. Slot
`user_author` by `author` holds, for each user, how often each author was shown, clicked, liked. A source has
`slots = Slots(...)`; one that has none gets `standard` slots.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from streaming.contract.schema import shown
from streaming.declaration import INT64_MIN, MAX_TASKS, Declaration, check_name

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
SHOWN = "shown"
"""The name of the impression itself among a slot's actions."""
BY_ITEM = "item"
"""The `by` of a slot that counts by the item's own id."""


class Window(NamedTuple):
    """A length of time up to now. Its begin moves in steps of `hop_ms` (a sawtooth); `ms` 0 is all time."""

    ms: int
    hop_ms: int

    def begin_ms(self, now_ms: int) -> int:
        """The oldest event time that the window holds at `now_ms`: floor(now - ms, hop)."""
        return (now_ms - self.ms) // self.hop_ms * self.hop_ms if self.ms else INT64_MIN


WINDOWS = {
    "1h": Window(HOUR_MS, MINUTE_MS),
    "1d": Window(DAY_MS, HOUR_MS),
    "7d": Window(7 * DAY_MS, DAY_MS),
    "all": Window(0, 1),
}
MAX_SLOTS = 64
MAX_TOP = 64
"""A list of an impression's features has no more ids."""
MAX_KEEP_MS = 3660 * DAY_MS


@dataclass(frozen=True)
class Slot:
    """One kind of counts of a user's or an item's profile.

    `by` is a feature of the impression, of kind id or ids, whose values are counted; "item" counts by the item's id; ""
    counts everything under the feature id 0. `windows` are those of WINDOWS that can be read. What is older than
    `keep_ms` is dropped, or kept as one sum if the window `all` is declared. `top`: how many values the slot's lists
    have as features (docs/features.md); what is stored does not depend on it, so neither JSON nor sha256 has it.
    """

    name: str
    entity: Literal["user", "item"]
    by: str = ""
    windows: tuple[str, ...] = ("1h", "1d", "7d")
    keep_ms: int = 30 * DAY_MS
    top: int = 20

    def __post_init__(self) -> None:
        check_name("a slot's name", self.name)
        if self.entity not in ("user", "item"):
            raise ValueError(f"slot {self.name}: entity is {shown(self.entity)}, allowed is user or item")
        if self.by:
            check_name(f"slot {self.name}: by", self.by)
        object.__setattr__(self, "windows", tuple(self.windows))
        wrong = [window for window in self.windows if window not in WINDOWS]
        if wrong or not self.windows:
            value = shown(wrong[0]) if wrong else "none"
            raise ValueError(f"slot {self.name}: a window is {value}, allowed are {', '.join(WINDOWS)}")
        if len(set(self.windows)) < len(self.windows):
            raise ValueError(f"slot {self.name}: windows are {', '.join(self.windows)}, allowed is each one once")
        longest = max(WINDOWS[window].ms + WINDOWS[window].hop_ms for window in self.windows)
        for field, low, high in (("keep_ms", longest, MAX_KEEP_MS), ("top", 1, MAX_TOP)):
            value = getattr(self, field)
            if type(value) is not int or not low <= value <= high:
                allowed = f"a whole number, {low} to {high}"
                raise ValueError(f"slot {self.name}: {field} is {shown(value)}, allowed is {allowed}")


@dataclass(frozen=True)
class Slots:
    """The slots of a source and the actions that each of them counts: `shown`, then the declared tasks in order.

    A slot's and an action's place is its number in the store. So both grow at the end only.
    """

    slots: tuple[Slot, ...]
    actions: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self.slots))
        object.__setattr__(self, "actions", tuple(self.actions))
        if not 1 <= len(self.slots) <= MAX_SLOTS:
            raise ValueError(f"slots: {len(self.slots)} are declared, allowed are 1 to {MAX_SLOTS}")
        if self.actions[:1] != (SHOWN,) or len(self.actions) > 1 + MAX_TASKS:
            allowed = f"{SHOWN}, then up to {MAX_TASKS} tasks"
            raise ValueError(f"slots: actions are {shown(self.actions)}, allowed is {allowed}")
        for action in self.actions:
            check_name("slots: an action", action)
        for kind, names in (("slot", [slot.name for slot in self.slots]), ("action", list(self.actions))):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"slots: {kind} {name!r} is declared twice")

    def of(self, entity: str) -> tuple[Slot, ...]:
        """The slots of the users' or of the items' profiles."""
        return tuple(slot for slot in self.slots if slot.entity == entity)

    def check(self, declaration: Declaration) -> None:
        """Raises ValueError unless the slots count by features, and the actions are tasks, of `declaration`."""
        if self.actions[1:] != declaration.tasks:
            allowed = f"{SHOWN} and the tasks in their order: {', '.join(declaration.tasks)}"
            raise ValueError(
                f"slots of {declaration.name}: actions are {', '.join(self.actions)}, allowed is {allowed}"
            )
        features = [f.name for f in declaration.features if f.kind != "number"]
        for slot in self.slots:
            if slot.by not in ("", BY_ITEM, *features):
                allowed = f"'', {BY_ITEM} or a feature of kind id or ids: {', '.join(features)}"
                raise ValueError(f"slot {slot.name}: by is {slot.by!r}, allowed is {allowed}")

    def to_json(self) -> str:
        """The slots as the store keeps them: without `top`."""
        slots = [{name: value for name, value in asdict(slot).items() if name != "top"} for slot in self.slots]
        return json.dumps({"slots": slots, "actions": self.actions}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Slots:
        stored = json.loads(text)
        slots = tuple(Slot(**{**slot, "windows": tuple(slot["windows"])}) for slot in stored["slots"])
        return cls(slots, tuple(stored["actions"]))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def standard(declaration: Declaration) -> Slots:
    """The slots of a source that declares none: counts of each user and each item, and the user's last items."""
    every = tuple(WINDOWS)
    slots = (
        Slot("user", "user", windows=every),
        Slot("item", "item", windows=every),
        Slot("user_item", "user", by=BY_ITEM, windows=("7d",)),
    )
    return Slots(slots, (SHOWN, *declaration.tasks))


def slots_of(source: Any) -> Slots:
    """The slots of a source, its own or the standard ones. Raises ValueError if they do not fit its declaration."""
    slots = getattr(source, "slots", None) or standard(source.declaration)
    if not isinstance(slots, Slots):
        raise ValueError(
            f"slots of {source.declaration.name} are {shown(slots)}, allowed is streaming.slots.Slots(...)"
        )
    slots.check(source.declaration)
    return slots
