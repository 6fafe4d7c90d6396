"""What a source may change, each change in one line that names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from streaming.declaration import Declaration, Feature, Policy
from streaming.growth import Declarations, compare

USER, TAGS, PRICE = Feature("user", "id"), Feature("tags", "ids", default=(1,)), Feature("price", "number")
OLD = Declaration("shop", (USER, TAGS, PRICE), ("click", "like"), "click", 60_000)


@pytest.mark.parametrize(
    ("changes", "added", "refused"),
    [
        ({}, [], []),
        ({"policies": (Policy("user", admit_after=2),)}, [], []),
        ({"features": (replace(USER, view="user"), TAGS, replace(PRICE, default=0))}, [], []),
        (
            {"features": (Feature("hits", "number", default=2.0), USER, TAGS, PRICE, Feature("seen", "ids", "user"))},
            [
                "feature hits (number) is added, with default 2.0",
                "feature seen (ids) is added, with default (), in the table user",
            ],
            [],
        ),
        (
            {"features": (*OLD.features, Feature("brand", "id")), "tasks": ("click", "like", "share")},
            ["feature brand (id) is added, with default 0, in the new table brand", "task share is added"],
            [],
        ),
        ({"features": (USER, TAGS)}, [], ["feature price is removed"]),
        (
            {"features": (USER, TAGS, Feature("price", "id"))},
            [],
            [
                "feature price: kind is 'id', was 'number'",
                "feature price: table is 'price', was ''",
            ],
        ),
        ({"features": (replace(USER, table="who"), TAGS, PRICE)}, [], ["feature user: table is 'who', was 'user'"]),
        ({"features": (USER, replace(TAGS, default=()), PRICE)}, [], ["feature tags: default is (), was (1,)"]),
        (
            {"features": (TAGS, USER, PRICE)},
            [],
            ["the order of the features is tags, user, price, was user, tags, price"],
        ),
        ({"tasks": ("click",)}, [], ["task like is removed"]),
        (
            {"tasks": ("click", "share", "like")},
            ["task share is added"],
            ["tasks are click, share, like, were click, like: new ones have their place at the end"],
        ),
        ({"judged": "like"}, [], ["judged is 'like', was 'click'"]),
        ({"window_ms": 5}, [], ["window_ms is 5, was 60000"]),
        ({"name": "store"}, [], ["name is 'store', was 'shop'"]),
    ],
)
def test_each_change_is_named(changes: dict[str, Any], added: list[str], refused: list[str]) -> None:
    assert compare(OLD, replace(OLD, **changes)) == (tuple(added), tuple(refused))


def test_a_folder_keeps_the_declarations_that_it_was_written_under(tmp_path: Path) -> None:
    kept, new = Declarations(tmp_path), replace(OLD, tasks=("click", "like", "share"))
    with pytest.raises(InputError, match=f"declaration {OLD.sha256[:12]}, which it does not hold.* or begin anew"):
        kept.grown(OLD.sha256, new, "begin anew")
    kept.keep(OLD)
    kept.keep(OLD)
    assert kept.grown(OLD.sha256, new, "begin anew") == OLD
    kept.keep(new)
    with pytest.raises(InputError, match="task share is removed: allowed are new features, .* or begin anew"):
        kept.grown(new.sha256, OLD, "begin anew")
