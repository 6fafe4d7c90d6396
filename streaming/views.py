"""The views of a source: what the feature store keeps of its users and items, and how the model's features follow.

Four views (docs/features.md). `profile` of a user and `video` of an item are batch tables of the source's own columns;
`activity` of a user and `counters` of an item are counted from the topics, alike for every source (`ACTIVITY`,
`COUNTERS`). `on_demand` computes the declared features of view `derived` and passes on those of view `request`.

A source offers `views: Views`. One that does not has the two counted views, and all its features come with the request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa

DAY_MS = 86_400_000
Rows = Mapping[str, list[Any]]
"""Column -> value of each row, None where a view has no row of the key."""


class Column(NamedTuple):
    """A column of a view: one int64, a list of them, or a float64."""

    name: str
    kind: Literal["int", "ints", "number"]


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
