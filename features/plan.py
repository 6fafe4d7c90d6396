"""Plans a source's features: the views that the feature store keeps, and how the model's features follow from them.

There are four views (docs/features.md). `profile` of a user and `video` of an item hold the source's own columns, from
its tables and from messages. `activity` of a user and `counters` of an item are read from the profile store, and their
columns follow from the source's slots (features/counted.py). `on_demand` computes the declared features of view
`derived`. It passes on those of view `request`.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from features.counted import Counted
from streaming.declaration import Declaration, Feature
from streaming.slots import Slots, slots_of
from streaming.source import Source, load
from streaming.views import Column, Rows, Views

SERVICE = "ranker"
"""The name of Feast's feature service: the features of a request to the served model."""


TS = "ts_ms"
"""The time of the request, an input of the on-demand view beside the request's features."""


GIVEN = "given_"
"""The prefix of a request feature's name in the on-demand view's input; its output has the name without it."""


class Plan(NamedTuple):
    """The views of a source: the columns of each view, and the declared features by the view they come from.

    `inputs`: of each counted view the columns that the on-demand view reads.
    """

    declaration: Declaration
    views: Views
    slots: Slots
    counted: Counted
    inputs: dict[str, list[str]]
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
    declaration, views, slots = source.declaration, getattr(source, "views", Views()), slots_of(source)
    features: dict[str, list[Feature]] = {v: [] for v in ("request", "user", "item", "profile", "video", "derived")}
    for f in declaration.features:
        features[f.view].append(f)
    for entity in ("user", "item"):
        wrong = [f.name for f in features[entity] if f.kind != "id"]
        if wrong or len(features[entity]) > 1:
            names = ", ".join(f.name for f in features[entity])
            raise ValueError(f"declaration {declaration.name}: view {entity} has {names}; allowed is one id")
    counted = Counted(slots)
    inputs = {view: [c.name for c in columns if c.name in views.inputs] for view, columns in counted.columns.items()}
    of_slots = [c.name for columns in counted.columns.values() for c in columns]
    for name in views.inputs:
        if name not in of_slots:
            close = ", ".join(get_close_matches(name, of_slots)) or of_slots[0]
            allowed = f"a column of the source's slots, such as {close}"
            raise ValueError(f"views of {declaration.name}: an input is {name!r}, allowed is {allowed}")
    of_source = {view: of_view for view, of_view in views.columns(declaration).items() if of_view}
    return Plan(
        declaration,
        views,
        slots,
        counted,
        inputs,
        features["user"][0].name if features["user"] else "user_id",
        features["item"][0].name if features["item"] else "item_id",
        {**of_source, **counted.columns},
        features,
    )


@lru_cache(maxsize=4)
def plan_of(source: str) -> Plan:
    """Loads a source by name and makes its plan, once."""
    return plan(load(source))


def on_demand(source: str, inputs: Rows) -> dict[str, list[Any]]:
    """Computes the on-demand view of each row: features derived from the views' columns, and those of the request."""
    of_source = plan_of(source)
    rows = dict(inputs)
    requested = {f.name: rows.pop(GIVEN + f.name) for f in of_source.features["request"]}
    requested |= {
        f.name: [v or [] for v in requested[f.name]] for f in of_source.features["request"] if f.kind == "ids"
    }
    derived = of_source.views.derive({**rows, **requested})
    return {f.name: list(derived[f.name] if f.view == "derived" else requested[f.name]) for f in of_source.on_demand}
