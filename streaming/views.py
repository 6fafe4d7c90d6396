"""The views of a source: columns of its users and items in the feature store, and the features that follow from them.

There are four views (docs/features.md). `profile` of a user and `video` of an item hold the source's own columns, from
its tables and from the topics `users` and `items`. `activity` of a user and `counters` of an item hold what the slots
of the source count (streaming/slots.py).

A source has `views: Views`. Without it, it has the two counted views only, and all features come with the request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from streaming.declaration import Declaration
from streaming.topics import ITEMS, USERS

VIEWS = {USERS: "profile", ITEMS: "video"}
"""Topic of attributes -> the view that it feeds."""
Rows = Mapping[str, list[Any]]
"""Column -> value of each row, None if a view has no row of the key."""


class Column(NamedTuple):
    """A column of a view: one int64, a list of them, or a float64."""

    name: str
    kind: Literal["int", "ints", "number"]


def _nothing() -> pa.Table:
    return pa.table({})


@dataclass(frozen=True)
class Views:
    """The views of a source.

    `profile` and `video` are the columns of these two views beside the declared features of that view. `users` and
    `items` read the tables: the entity's key under its declared name, `ts_ms` (the begin of the row's validity), and
    all columns. `derive` takes the columns of `profile` and `video`, the counted columns that `inputs` names, the
    request's features and `ts_ms`, one value a row. It returns the declared features of view `derived`, computed as for
    training examples.
    """

    profile: tuple[Column, ...] = ()
    video: tuple[Column, ...] = ()
    users: Callable[[], pa.Table] = _nothing
    items: Callable[[], pa.Table] = _nothing
    derive: Callable[[Rows], dict[str, list[Any]]] = lambda rows: {}
    inputs: tuple[str, ...] = ()

    def columns(self, declaration: Declaration) -> dict[str, tuple[Column, ...]]:
        """The columns of `profile` and `video`: the declared features of that view, and the source's own."""
        kinds: dict[str, Literal["int", "ints", "number"]] = {"id": "int", "ids": "ints", "number": "number"}
        return {
            view: (*(Column(f.name, kinds[f.kind]) for f in declaration.features if f.view == view), *own)
            for view, own in (("profile", self.profile), ("video", self.video))
        }
