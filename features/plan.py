"""Plans a source's features: the views that the feature store keeps, and how the model's features follow from them.

There are four views (docs/features.md). `profile` of a user and `video` of an item hold the source's own columns, from
its tables and from messages. `activity` of a user and `counters` of an item are counted from the topics, in the same
way for every source (`ACTIVITY`, `COUNTERS`). `on_demand` computes the declared features of view `derived`. It passes
on those of view `request`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from streaming.declaration import Declaration, Feature
from streaming.source import Source, load
from streaming.views import Column, Rows, Views

SERVICE = "ranker"
"""The name of Feast's feature service: the features of a request to the served model."""


TS = "ts_ms"
"""The time of the request, an input of the on-demand view beside the request's features."""


GIVEN = "given_"
"""The prefix of a request feature's name in the on-demand view's input; its output has the name without it."""


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
    *(Column(f"item_{count}_{window}", "int") for window in ("1h", "1d", "7d") for count in ("shown", "positives")),
)
"""Impressions and judged actions of an item, so far and over three windows. A window ends with the current minute (1 h)
or hour (1 d, 7 d) of event time and holds 60 of the one, 24 and 168 of the other."""


EVENT_MS = {"activity": "user_event_ms", "counters": "item_event_ms"}


class Plan(NamedTuple):
    """The views of a source: the columns of each view, and the declared features by the view they come from."""

    declaration: Declaration
    views: Views
    user_key: str
    item_key: str
    columns: dict[str, tuple[Column, ...]]
    features: dict[str, list[Feature]]

    @property
    def on_demand(self) -> list[Feature]:
        """The features that the on-demand view returns."""
        return [*self.features["derived"], *self.features["request"]]

    def key(self, view: str) -> str:
        """The entity's key of a view."""
        return self.user_key if view in ("profile", "activity") else self.item_key


def plan(source: Source) -> Plan:
    """Makes the plan of a source. Raises ValueError if its declaration and its views do not fit."""
    declaration, views = source.declaration, getattr(source, "views", Views())
    features: dict[str, list[Feature]] = {v: [] for v in ("request", "user", "item", "profile", "video", "derived")}
    for f in declaration.features:
        features[f.view].append(f)
    for entity in ("user", "item"):
        wrong = [f.name for f in features[entity] if f.kind != "id"]
        if wrong or len(features[entity]) > 1:
            names = ", ".join(f.name for f in features[entity])
            raise ValueError(f"declaration {declaration.name}: view {entity} has {names}; allowed is one id")
    if views.by and views.by not in [f.name for f in features["request"] if f.kind == "id"]:
        allowed = "a feature of kind id and view request"
        raise ValueError(f"views of {declaration.name}: by is {views.by!r}, allowed is {allowed}")
    of_source = {view: of_view for view, of_view in views.columns(declaration).items() if of_view}
    return Plan(
        declaration,
        views,
        features["user"][0].name if features["user"] else "user_id",
        features["item"][0].name if features["item"] else "item_id",
        {**of_source, "activity": ACTIVITY, "counters": COUNTERS},
        features,
    )


@lru_cache(maxsize=4)
def plan_of(source: str) -> Plan:
    """Loads a source by name and makes its plan, once."""
    return plan(load(source))


def on_demand(source: str, inputs: Rows) -> dict[str, list[Any]]:
    """Computes the on-demand view of each row: features derived from the views' columns, and those of the request.

    The feature store applies no TTL when it reads online. So this function ignores a row that is older than its TTL.
    """
    of_source = plan_of(source)
    rows = dict(inputs)
    for view, ttl_ms in of_source.views.ttl_ms.items():
        event_ms = rows.get(EVENT_MS[view])
        if event_ms is None:
            continue
        times = zip(event_ms, rows[TS], strict=True)
        expired = [at is not None and now is not None and at + ttl_ms < now for at, now in times]
        if any(expired):
            for column in of_source.columns[view]:
                values = rows[column.name]
                rows[column.name] = [None if old else v for v, old in zip(values, expired, strict=True)]
    requested = {f.name: rows.pop(GIVEN + f.name) for f in of_source.features["request"]}
    requested |= {
        f.name: [v or [] for v in requested[f.name]] for f in of_source.features["request"] if f.kind == "ids"
    }
    derived = of_source.views.derive({**rows, **requested})
    return {f.name: list(derived[f.name] if f.view == "derived" else requested[f.name]) for f in of_source.on_demand}
