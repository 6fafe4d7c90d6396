"""The views of a source: what the feature store keeps of its users and items, and how the model's features follow.

Four views (docs/features.md). `profile` of a user and `video` of an item are batch tables of the source's own columns;
`activity` of a user and `counters` of an item are counted from the topics, alike for every source (`ACTIVITY`,
`COUNTERS`). `on_demand` computes the declared features of view `derived` and passes on those of view `request`.

A source offers `views: Views`. One that does not has the two counted views, and all its features come with the request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from streaming.declaration import Declaration, Feature
from streaming.source import Source, load

DAY_MS = 86_400_000
TS = "ts_ms"
"""The time of the request, an input of the on-demand view beside the given features."""
GIVEN = "given_"
"""What the name of a request feature begins with on its way in: on its way out it has its own."""
Rows = Mapping[str, list[Any]]
"""Column -> value of each row, None where a view has no row of the key."""


class Column(NamedTuple):
    """A column of a view: one int64, a list of them, or a float64."""

    name: str
    kind: Literal["int", "ints", "number"]


ACTIVITY = (
    Column("user_event_ms", "int"),
    Column("user_shown", "int"),
    Column("user_positives", "int"),
    Column("user_last_ms", "int"),
    Column("user_items", "ints"),
    Column("user_by", "ints"),
    Column("user_by_shown", "ints"),
    Column("user_by_positives", "ints"),
)
"""Recent activity of a user: impressions and actions of the judged task so far, the last impression's time, the last
items (newest first), and the same two counts by each value of one request feature (`Views.by`)."""

COUNTERS = (
    Column("item_event_ms", "int"),
    Column("item_shown", "int"),
    Column("item_positives", "int"),
    *(Column(f"item_{what}_{window}", "int") for window in ("1h", "1d", "7d") for what in ("shown", "positives")),
)
"""Impressions and judged actions of an item, so far and over three windows. A window ends with the current minute (1 h)
or hour (1 d, 7 d) of event time and holds 60 of the one, 24 and 168 of the other."""

EVENT_MS = {"activity": "user_event_ms", "counters": "item_event_ms"}


def _nothing() -> pa.Table:
    return pa.table({})


@dataclass(frozen=True)
class Views:
    """What a source says of its views.

    `profile` and `video` are the columns of the batch views beside the declared features of that view. `users` and
    `items` read the tables: the entity's key under its declared name, `ts_ms` (since when it is so), all columns.
    `derive` takes raw columns of all four views, the request's features and `ts_ms`, one value a row, and returns the
    declared features of view `derived`; what it is to a training example it must be here. `ttl_ms`: a counted row
    older than this at the request's time counts as none.
    """

    profile: tuple[Column, ...] = ()
    video: tuple[Column, ...] = ()
    users: Callable[[], pa.Table] = _nothing
    items: Callable[[], pa.Table] = _nothing
    derive: Callable[[Rows], dict[str, list[Any]]] = lambda rows: {}
    by: str = ""
    ttl_ms: Mapping[str, int] = field(default_factory=lambda: {"activity": 30 * DAY_MS, "counters": 30 * DAY_MS})


class Plan(NamedTuple):
    """A source's views, worked out: columns of each view, and the declared features by where they come from."""

    declaration: Declaration
    views: Views
    user_key: str
    item_key: str
    columns: dict[str, tuple[Column, ...]]
    features: dict[str, list[Feature]]

    @property
    def on_demand(self) -> list[Feature]:
        """What the on-demand view puts out."""
        return [*self.features["derived"], *self.features["request"]]

    def key(self, view: str) -> str:
        """The entity's key of a view."""
        return self.user_key if view in ("profile", "activity") else self.item_key


def plan(source: Source) -> Plan:
    """Raises ValueError where declaration and views do not fit."""
    declaration, views = source.declaration, getattr(source, "views", Views())
    features: dict[str, list[Feature]] = {v: [] for v in ("request", "user", "item", "profile", "video", "derived")}
    for f in declaration.features:
        features[f.view].append(f)
    for entity in ("user", "item"):
        wrong = [f.name for f in features[entity] if f.kind != "id"]
        if wrong or len(features[entity]) > 1:
            names = ", ".join(f.name for f in features[entity])
            raise ValueError(f"declaration {declaration.name}: view {entity} has {names}; allowed is one id")
    if views.by and views.by not in [f.name for f in features["request"]]:
        raise ValueError(f"views of {declaration.name}: by is {views.by!r}, allowed is a feature of view request")
    kinds: dict[str, Literal["int", "ints", "number"]] = {"id": "int", "ids": "ints", "number": "number"}
    columns = {
        view: (*(Column(f.name, kinds[f.kind]) for f in features[view]), *more)
        for view, more in (("profile", views.profile), ("video", views.video))
    }
    return Plan(
        declaration,
        views,
        features["user"][0].name if features["user"] else "user_id",
        features["item"][0].name if features["item"] else "item_id",
        {**{view: c for view, c in columns.items() if c}, "activity": ACTIVITY, "counters": COUNTERS},
        features,
    )


@lru_cache(maxsize=4)
def plan_of(source: str) -> Plan:
    return plan(load(source))


def on_demand(source: str, inputs: Rows) -> dict[str, list[Any]]:
    """The on-demand view: derived features from the views' columns, and the request's own, of each row.

    The feature store does not hold a view's age against it when it reads online: here too old is none.
    """
    found = plan_of(source)
    rows = dict(inputs)
    for view, ttl_ms in found.views.ttl_ms.items():
        seen = rows.get(EVENT_MS[view])
        if seen is None:
            continue
        old = [at is not None and now is not None and at + ttl_ms < now for at, now in zip(seen, rows[TS], strict=True)]
        if any(old):
            for column in found.columns[view]:
                values = rows[column.name]
                rows[column.name] = [None if gone else v for v, gone in zip(values, old, strict=True)]
    given = {f.name: rows.pop(GIVEN + f.name) for f in found.features["request"]}
    given |= {f.name: [v or [] for v in given[f.name]] for f in found.features["request"] if f.kind == "ids"}
    derived = found.views.derive({**rows, **given})
    return {f.name: list(derived[f.name] if f.view == "derived" else given[f.name]) for f in found.on_demand}
