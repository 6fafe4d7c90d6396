"""What a source's features and tasks are, declared once: trainer, export, join, feature store, clients read this."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
RESERVED_IDS = (INT64_MIN, INT64_MIN + 1)
"""The serving table's two sentinels: refused at the edge. In an `ids` input of the served model the first pads."""


@dataclass(frozen=True)
class Feature:
    """One input of the model.

    `id`: one int64 and one row of `table`; `ids`: a list of int64, the mean of their rows; `number`: a finite float
    the source has brought to about unit scale. Features that name one table share its rows.
    """

    name: str
    kind: Literal["id", "ids", "number"]
    table: str = ""
    default: int | float | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("id", "ids", "number"):
            raise ValueError(f"feature {self.name}: kind is {self.kind!r}, allowed are id, ids, number")
        if not self.name.isidentifier():
            raise ValueError(f"feature {self.name!r}: a name is letters, digits and underscores")
        if self.kind == "number" and self.table:
            raise ValueError(f"feature {self.name}: a number has no table")
        if self.kind != "number" and not self.table:
            object.__setattr__(self, "table", self.name)
        if self.default is None:
            object.__setattr__(self, "default", {"id": 0, "ids": (), "number": 0.0}[self.kind])


@dataclass(frozen=True)
class Declaration:
    """A source's features and tasks, and the times its labels need.

    A task is the name of an action; its place in `tasks` is its place in labels and weights. `judged` is the task of
    the headline figures. `dim` is the length of an embedding; a table's row has `dim + 1` numbers, the first one being
    the linear weight (DeepFM). `window_ms` is how long after an impression an action counts.
    """

    name: str
    features: tuple[Feature, ...]
    tasks: tuple[str, ...]
    judged: str
    window_ms: int
    max_disorder_ms: int = 1000
    dim: int = 16

    def __post_init__(self) -> None:
        names = [f.name for f in self.features]
        for what, values in (("feature", names), ("task", list(self.tasks))):
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"declaration {self.name}: {what} {value!r} is declared twice")
        if self.judged not in self.tasks:
            raise ValueError(f"declaration {self.name}: judged is {self.judged!r}, allowed are {', '.join(self.tasks)}")
        if self.window_ms <= 0 or self.max_disorder_ms < 0 or self.dim <= 0:
            raise ValueError(f"declaration {self.name}: window_ms and dim must be > 0, max_disorder_ms >= 0")

    @property
    def tables(self) -> tuple[str, ...]:
        """Table names in the order of their first feature."""
        return tuple(dict.fromkeys(f.table for f in self.features if f.table))

    @property
    def row_dim(self) -> int:
        return self.dim + 1

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

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
