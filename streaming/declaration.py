"""The declaration of a source's features and tasks, for the trainer, the join, the feature store and clients."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
RESERVED_IDS = (INT64_MIN, INT64_MIN + 1)
"""The serving table's two sentinels. No event may have them. The first one pads `ids` inputs of the served model."""

VIEWS = ("request", "user", "item", "profile", "video", "derived")


@dataclass(frozen=True)
class Feature:
    """One input of the model.

    `id`: one int64 and one row of `table`; `ids`: a list of int64, the mean of their rows; `number`: a finite float
    the source has brought to about unit scale. Features that name one table share its rows.

    `view` tells where the feature store gets the feature (docs/features.md). `user` and `item` are the entities' own
    keys, `profile` and `video` are batch views, `derived` is computed from the views, `request` comes with the request.
    The view does not change the feature's meaning, so neither JSON nor sha256 has it.
    """

    name: str
    kind: Literal["id", "ids", "number"]
    table: str = ""
    default: int | float | tuple[int, ...] | None = None
    view: str = "request"

    def __post_init__(self) -> None:
        if self.kind not in ("id", "ids", "number"):
            raise ValueError(f"feature {self.name}: kind is {self.kind!r}, allowed are id, ids, number")
        if self.view not in VIEWS:
            raise ValueError(f"feature {self.name}: view is {self.view!r}, allowed are {', '.join(VIEWS)}")
        if not self.name.isidentifier():
            raise ValueError(f"feature {self.name!r}: a name is letters, digits and underscores")
        if self.kind == "number" and self.table:
            raise ValueError(f"feature {self.name}: a number has no table")
        if self.kind != "number" and not self.table:
            object.__setattr__(self, "table", self.name)
        if self.default is None:
            object.__setattr__(self, "default", {"id": 0, "ids": (), "number": 0.0}[self.kind])


MAX_ADMIT_AFTER = 255
"""A sight count is 8 bits (training/cuckoo/core/admission.h)."""


@dataclass(frozen=True)
class Policy:
    """Decides which ids of `table` have a row. Without a policy every id has one, for ever.

    `admit_after`: an id gets its row at its n-th sight. `admit_probability`: each sight gives it one with this
    probability. Before that the id reads zeros, in training and serving alike, and its gradients are dropped. The
    sights of `pending_ids` ids are counted at a time, at 8 bytes an id. `expire_ms`: a row leaves the table and the
    served model when no example has used it for so long, in event time.
    """

    table: str
    admit_after: int = 1
    admit_probability: float = 1.0
    expire_ms: int | None = None
    pending_ids: int = 1 << 20

    def __post_init__(self) -> None:
        for name, low, high in (("admit_after", 1, MAX_ADMIT_AFTER), ("pending_ids", 1, 2**32), ("expire_ms", 1, None)):
            value = getattr(self, name)
            if value is None and name == "expire_ms":
                continue
            if type(value) is not int or value < low or (high is not None and value > high):
                allowed = f"{low} to {high}" if high is not None else f"None or {low} or more"
                raise ValueError(f"policy of table {self.table!r}: {name} is {value!r}, allowed is an int, {allowed}")
        p = self.admit_probability
        if type(p) not in (int, float) or not 0 < p <= 1:
            raise ValueError(
                f"policy of table {self.table!r}: admit_probability is {p!r}, allowed is a number > 0 and <= 1"
            )
        if self.admit_after > 1 and p < 1:
            raise ValueError(
                f"policy of table {self.table!r}: admit_after is {self.admit_after} and admit_probability is {p}:"
                " allowed is one of the two, the other 1"
            )


@dataclass(frozen=True)
class Declaration:
    """A source's features and tasks, and the times its labels need.

    A task is the name of an action; its place in `tasks` is its place in labels and weights. `judged` is the task of
    the headline figures. `window_ms` is how long after an impression an action counts. The shape of a model is no part
    of it (training/models).

    `policies`, at most one a table, are for the trainer only. They change which rows exist and not what a row means. So
    neither JSON nor sha256 has them, and a lineage continues under other policies.
    """

    name: str
    features: tuple[Feature, ...]
    tasks: tuple[str, ...]
    judged: str
    window_ms: int
    max_disorder_ms: int = 1000
    policies: tuple[Policy, ...] = ()

    def __post_init__(self) -> None:
        names = [f.name for f in self.features]
        governed = [p.table for p in self.policies]
        for kind, values in (("feature", names), ("task", list(self.tasks)), ("a policy of table", governed)):
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"declaration {self.name}: {kind} {value!r} is declared twice")
        if self.judged not in self.tasks:
            raise ValueError(f"declaration {self.name}: judged is {self.judged!r}, allowed are {', '.join(self.tasks)}")
        for table in governed:
            if table not in self.tables:
                raise ValueError(
                    f"declaration {self.name}: a policy's table is {table!r}, allowed are {', '.join(self.tables)}"
                )
        if self.window_ms <= 0 or self.max_disorder_ms < 0:
            raise ValueError(f"declaration {self.name}: window_ms must be > 0, max_disorder_ms >= 0")

    @property
    def tables(self) -> tuple[str, ...]:
        """Table names in the order of their first feature."""
        return tuple(dict.fromkeys(f.table for f in self.features if f.table))

    def policy(self, table: str) -> Policy:
        """The table's policy. The default one admits every id and expires nothing."""
        return next((p for p in self.policies if p.table == table), Policy(table))

    def to_json(self) -> str:
        """The declaration for the join and the sha256: without policies and the features' views."""
        fields = asdict(self)
        del fields["policies"]
        for feature in fields["features"]:
            del feature["view"]
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Declaration:
        d: dict[str, Any] = json.loads(text)
        features = tuple(
            Feature(**{**f, "default": tuple(f["default"]) if f["kind"] == "ids" else f["default"]})
            for f in d.pop("features")
        )
        return cls(features=features, tasks=tuple(d.pop("tasks")), **d)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()
