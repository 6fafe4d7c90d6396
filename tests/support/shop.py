"""A small source for the tests of serving: each kind of feature, two of them sharing a table."""

from collections.abc import Iterator

from streaming.declaration import Declaration, Feature
from streaming.source import Exposure

declaration = Declaration(
    name="shop",
    features=(
        Feature("user", "id", view="user"),
        Feature("item", "id", view="item"),
        Feature("tags", "ids"),
        Feature("seen", "ids", table="item"),
        Feature("price", "number"),
        Feature("hour", "number"),
    ),
    tasks=("click", "like"),
    judged="click",
    window_ms=60_000,
)


def history() -> Iterator[Exposure]:
    return iter(())


def live() -> Iterator[Exposure]:
    return iter(())
