"""The slots of a source: the edges of windows, and one line for each wrong declaration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from streaming.declaration import INT64_MIN, Declaration, Feature
from streaming.slots import DAY_MS, HOUR_MS, MINUTE_MS, WINDOWS, Slot, Slots, slots_of, standard
from streaming.source import load

SHOP = Declaration(
    "shop",
    (Feature("product", "id"), Feature("tags", "ids"), Feature("price", "number")),
    ("buy", "save"),
    "buy",
    60_000,
)
USER, TAGS = Slot("user", "user"), Slot("user_tags", "user", by="tags", windows=("7d",))


def test_a_window_begins_at_its_hop() -> None:
    noon = 20_000 * DAY_MS + 12 * HOUR_MS + 34 * MINUTE_MS + 56_789
    begins = {name: noon - window.begin_ms(noon) for name, window in WINDOWS.items() if window.ms}
    assert begins == {
        "1h": HOUR_MS + 56_789,
        "1d": DAY_MS + 34 * MINUTE_MS + 56_789,
        "7d": 7 * DAY_MS + 12 * HOUR_MS + 34 * MINUTE_MS + 56_789,
    }
    assert WINDOWS["all"].begin_ms(noon) == INT64_MIN


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Slot("a b", "user"), "a slot's name is 'a b', allowed is a letter"),
        (lambda: Slot("s", "shop"), "slot s: entity is 'shop', allowed is user or item"),
        (lambda: Slot("s", "user", by="7"), "slot s: by is '7', allowed is a letter"),
        (lambda: Slot("s", "user", windows=("2h",)), "slot s: a window is '2h', allowed are 1h, 1d, 7d, all"),
        (lambda: Slot("s", "user", windows=()), "slot s: a window is none, allowed are 1h, 1d, 7d, all"),
        (lambda: Slot("s", "user", windows=("1h", "1h")), "slot s: windows are 1h, 1h, allowed is each one once"),
        (
            lambda: Slot("s", "user", keep_ms=DAY_MS),
            "slot s: keep_ms is 86400000, allowed is a whole number, 6912",
        ),
        (lambda: Slot("s", "user", top=0), "slot s: top is 0, allowed is a whole number, 1 to 64"),
        (lambda: Slots((), ("shown",)), "slots: 0 are declared, allowed are 1 to 64"),
        (lambda: Slots((USER,), ("buy",)), "slots: actions are ('buy',), allowed is shown, then up to 64 tasks"),
        (lambda: Slots((USER, USER), ("shown",)), "slots: slot 'user' is declared twice"),
        (lambda: Slots((USER,), ("shown", "buy", "buy")), "slots: action 'buy' is declared twice"),
        (
            lambda: Slots((USER,), ("shown", "buy")).check(SHOP),
            "slots of shop: actions are shown, buy, allowed is shown and the tasks in their order: buy, save",
        ),
        (
            lambda: Slots((replace(TAGS, by="price"),), ("shown", "buy", "save")).check(SHOP),
            "slot user_tags: by is 'price', allowed is '', item or a feature of kind id or ids: product, tags",
        ),
    ],
)
def test_a_wrong_declaration_is_refused_in_one_line(make: Any, error: str) -> None:
    with pytest.raises(ValueError) as raised:
        make()
    assert str(raised.value).startswith(error)


def test_what_is_stored_survives_json_and_lists_do_not_change_it() -> None:
    slots = Slots((USER, TAGS), ("shown", "buy", "save"))
    assert Slots.from_json(slots.to_json()) == slots
    assert replace(slots, slots=(USER, replace(TAGS, top=5))).sha256 == slots.sha256
    assert replace(slots, slots=(TAGS, USER)).sha256 != slots.sha256


@pytest.mark.parametrize("source", ["simulator", "kuairand"])
def test_sources_count_all_their_tasks(source: str) -> None:
    loaded = load(source)
    slots = slots_of(loaded)
    assert slots != standard(loaded.declaration)
    assert slots.actions == ("shown", *loaded.declaration.tasks)
    assert {slot.by for slot in slots.of("user")} >= {"", "item"} and {slot.by for slot in slots.of("item")} == {""}
