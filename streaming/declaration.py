"""The declaration of a source's features and tasks, for the trainer, the join, the feature store and clients."""

from __future__ import annotations

import hashlib
import json
import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from streaming.contract.schema import BadMessage, check, plain, rule, shown

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
RESERVED_IDS = (INT64_MIN, INT64_MIN + 1)
"""The serving table's two sentinels. No event may have them. The first one pads `ids` inputs of the served model."""

MAX_TASKS = 64
"""The join has one bit of a long for each task."""
MAX_WINDOW_MS = 366 * 86_400_000
MAX_EXPONENT = 100

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
"""A name is one in TensorFlow, in Feast, in SQL and in a path."""


def check_name(where: str, name: Any) -> None:
    """Raises ValueError unless `name` is a name; `where` tells whose."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "a letter of a to z or A to Z, then up to 63 letters, digits and underscores"
        raise ValueError(f"{where} is {shown(name)}, allowed is {allowed}")


VIEWS = ("request", "user", "item", "profile", "video", "derived")


@dataclass(frozen=True)
class Feature:
    """One input of the model.

    `id`: one int64 and one row of `table`; `ids`: a list of int64, the mean of their rows; `number`: a finite float
    the source has brought to about unit scale. Features that name one table share its rows.

    `view` tells where the feature store gets the feature (docs/features.md). `user` and `item` are the entities' own
    keys, `profile` and `video` are batch views, `derived` is computed from the views, `request` comes with the request.
    The view does not change the feature's meaning, so neither JSON nor sha256 has it.

    `logged`: known in logging only, such as the device that showed the item, and with a table of its own. It is logged
    with the impression and learned as a bias of the feedback (docs/models.md). It is no input of the served model.
    """

    name: str
    kind: Literal["id", "ids", "number"]
    table: str = ""
    default: int | float | tuple[int, ...] | None = None
    view: str = "request"
    logged: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("id", "ids", "number"):
            raise ValueError(f"feature {self.name}: kind is {self.kind!r}, allowed are id, ids, number")
        if self.view not in VIEWS:
            raise ValueError(f"feature {self.name}: view is {self.view!r}, allowed are {', '.join(VIEWS)}")
        if self.logged and (self.kind == "number" or self.view != "request"):
            allowed = "allowed is kind id or ids, and view request"
            raise ValueError(f"feature {self.name}: logged with kind {self.kind!r} and view {self.view!r}, {allowed}")
        check_name("a feature's name", self.name)
        if keyword.iskeyword(self.name) or self.name == "self":
            raise ValueError(f"a feature's name is {self.name!r}, allowed is a name that is no keyword of Python")
        if self.kind == "number" and self.table:
            raise ValueError(f"feature {self.name}: a number has no table")
        if self.kind != "number" and not self.table:
            object.__setattr__(self, "table", self.name)
        if self.table:
            check_name(f"feature {self.name}: table", self.table)
        object.__setattr__(self, "default", self._checked_default())

    def _checked_default(self) -> Any:
        if self.default is None:
            return {"id": 0, "ids": (), "number": 0.0}[self.kind]
        default = plain(self.default)
        try:
            check(rule(self.kind), default, "default")
        except BadMessage as e:
            raise ValueError(f"feature {self.name}: {e}") from None
        return tuple(default) if self.kind == "ids" else default


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
class Online:
    """How the dense weights of a model learn online, if the settings do not say otherwise.

    `dense_rate` is the factor of their learning rates: 1 is that of the batch pass, 0 holds them. They are synced with
    each `dense_every`-th delta. Rows learn at their own rate and are in each delta.
    """

    dense_rate: float = 1.0
    dense_every: int = 1

    def __post_init__(self) -> None:
        rate, every = self.dense_rate, self.dense_every
        if type(rate) not in (int, float) or not 0 <= rate < math.inf:
            raise ValueError(f"online: dense_rate is {shown(rate)}, allowed is a number, 0 or more")
        if type(every) is not int or every < 1:
            raise ValueError(f"online: dense_every is {shown(every)}, allowed is an int, 1 or more")


@dataclass(frozen=True)
class Declaration:
    """A source's features and tasks, and the times its labels need.

    A task is the name of an action; its place in `tasks` is its place in labels and weights. `judged` is the task of
    the headline figures. `window_ms` is how long after an impression an action counts. The shape of a model is no part
    of it (training/models).

    `values` are the tasks that learn the expected value of their action (training/models/losses.py), such as seconds
    of watching; the others learn whether it happens. `rank` is task -> exponent of its score in the number that ranks
    an item (serving/ranking.py), {"click": 1, "hate": -2}. Without it the judged task ranks. It is no part of JSON
    and sha256.

    `policies`, at most one a table, and `online` are for the trainer only. They change which rows exist and how weights
    learn, and not what a row means. So neither JSON nor sha256 has them, and a lineage continues under others.
    """

    name: str
    features: tuple[Feature, ...]
    tasks: tuple[str, ...]
    judged: str
    window_ms: int
    policies: tuple[Policy, ...] = ()
    online: Online = Online()
    values: tuple[str, ...] = ()
    rank: tuple[tuple[str, float], ...] | Mapping[str, float] = ()

    def __post_init__(self) -> None:
        self._take_tuple("features", Feature)
        self._take_tuple("tasks", str)
        self._take_tuple("policies", Policy)
        self._take_tuple("values", str)
        for task in self.tasks:
            check_name(f"declaration {self.name}: a task", task)
            if task == "seq":
                raise ValueError(f"declaration {self.name}: a task is 'seq', allowed is a name no answer has")
        if not any(f.table for f in self.served):
            raise ValueError(f"declaration {self.name}: no feature is of kind id or ids, allowed is one or more")
        for table in {f.table for f in self.features if f.logged} & {f.table for f in self.served}:
            raise ValueError(
                f"declaration {self.name}: table {table!r} is of a logged and of another feature, allowed is one kind"
            )
        self._check_cases()
        if len(self.tasks) > MAX_TASKS:
            raise ValueError(f"declaration {self.name}: {len(self.tasks)} tasks, allowed are up to {MAX_TASKS}")
        names = [f.name for f in self.features]
        governed = [p.table for p in self.policies]
        for kind, values in (("feature", names), ("task", list(self.tasks)), ("a policy of table", governed)):
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"declaration {self.name}: {kind} {value!r} is declared twice")
        self._check_kinds()
        if self.judged not in self.tasks:
            raise ValueError(f"declaration {self.name}: judged is {self.judged!r}, allowed are {', '.join(self.tasks)}")
        for table in governed:
            if table not in self.tables:
                raise ValueError(
                    f"declaration {self.name}: a policy's table is {table!r}, allowed are {', '.join(self.tables)}"
                )
        object.__setattr__(self, "window_ms", plain(self.window_ms))
        if type(self.window_ms) is not int or not 1 <= self.window_ms <= MAX_WINDOW_MS:
            allowed = f"a whole number, 1 to {MAX_WINDOW_MS} (366 days)"
            raise ValueError(f"declaration {self.name}: window_ms is {shown(self.window_ms)}, allowed is {allowed}")

    def _check_kinds(self) -> None:
        """Checks the tasks of `values` and `rank`, and makes a tuple of `rank`."""
        binary = [task for task in self.tasks if task not in self.values]
        if wrong := [task for task in self.values if task not in self.tasks]:
            allowed = ", ".join(self.tasks)
            raise ValueError(f"declaration {self.name}: a value task is {wrong[0]!r}, allowed are {allowed}")
        if self.judged in self.values:
            allowed = f"allowed is a task without a value: {', '.join(binary) or 'there is none'}"
            raise ValueError(f"declaration {self.name}: judged is {self.judged!r}, {allowed}")
        exponents = dict(self.rank)
        for task, exponent in exponents.items():
            if task not in self.tasks:
                allowed = ", ".join(self.tasks)
                raise ValueError(f"declaration {self.name}: rank has {shown(task)}, allowed are {allowed}")
            if type(exponent) not in (int, float) or not abs(exponent) <= MAX_EXPONENT:
                allowed = f"allowed is a number, {-MAX_EXPONENT} to {MAX_EXPONENT}"
                raise ValueError(f"declaration {self.name}: rank of {task} is {shown(exponent)}, {allowed}")
        object.__setattr__(self, "rank", tuple((task, float(exponent)) for task, exponent in exponents.items()))

    def _check_cases(self) -> None:
        """TensorFlow takes two names of a call for one if they differ in capital letters only."""
        for kind, names in (("feature", [f.name for f in self.features]), ("table", self.tables), ("task", self.tasks)):
            first: dict[str, str] = {}
            for name in names:
                other = first.setdefault(name.lower(), name)
                if other != name:
                    allowed = "names that differ in more than capital letters"
                    raise ValueError(
                        f"declaration {self.name}: {kind} is {name!r} beside {other!r}, allowed are {allowed}"
                    )

    def _take_tuple(self, field: str, kind: type) -> None:
        """Makes a tuple of a list. A text or a single feature in place of a tuple is refused."""
        values = getattr(self, field)
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, kind) for value in values):
            raise ValueError(
                f"declaration {self.name}: {field} is {shown(values)}, allowed is a tuple of {kind.__name__}"
            )
        object.__setattr__(self, field, tuple(values))

    @property
    def tables(self) -> tuple[str, ...]:
        """Table names in the order of their first feature."""
        return tuple(dict.fromkeys(f.table for f in self.features if f.table))

    @property
    def served(self) -> tuple[Feature, ...]:
        """The inputs of the served model: all features but the logged ones."""
        return tuple(f for f in self.features if not f.logged)

    @property
    def exponents(self) -> dict[str, float]:
        """Task -> its exponent in the rank score; empty if the source declares none."""
        return dict(self.rank)

    def policy(self, table: str) -> Policy:
        """The table's policy. The default one admits every id and expires nothing."""
        return next((p for p in self.policies if p.table == table), Policy(table))

    def to_json(self) -> str:
        """The declaration for the join and the sha256: without policies, `online`, `rank` and the features' views."""
        fields = asdict(self)
        del fields["policies"], fields["online"], fields["rank"]
        if not self.values:  # absent, as in declarations from before there were value tasks
            del fields["values"]
        for feature in fields["features"]:
            del feature["view"]
            if not feature["logged"]:  # absent, as in declarations from before there were logged features
                del feature["logged"]
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
