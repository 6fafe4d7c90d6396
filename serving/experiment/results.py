"""The results of an experiment, from the archive: what the users of each arm did, and how arms differ.

found = results(Archive("var/local/archive"), declaration, arms_of("served:50,frozen:50"))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import InputError
from common.interval import Interval
from serving.experiment.arms import Arm
from serving.experiment.statistics import MISMATCH_P, Difference, Users, compared, mismatch
from streaming.archive.archive import Archive
from streaming.declaration import Declaration
from streaming.slots import DAY_MS
from streaming.topics import ACTIONS, IMPRESSIONS

BEFORE_MS = 7 * DAY_MS
"""What a user did in the week before the experiment is CUPED's covariate."""


class Results(NamedTuple):
    """An experiment's users, impressions and rates by arm, and each arm's difference to the first one by task."""

    interval: Interval
    arms: Sequence[Arm]
    users: Mapping[str, int]
    impressions: Mapping[str, int]
    rates: Mapping[str, Mapping[str, float]]
    """Arm -> task -> actions an impression."""
    differences: Mapping[str, Mapping[str, Difference]]
    """Arm -> task -> its rate less that of the first arm."""
    mismatch_p: float
    changed: int
    """Users who were in several arms, since the arms were changed. They are left out."""

    @property
    def warnings(self) -> list[str]:
        """What forbids to read the differences as effects."""
        texts = []
        if self.mismatch_p < MISMATCH_P:
            counts = ", ".join(f"{arm.name} {self.users[arm.name]} ({100 * arm.share:g} % asked)" for arm in self.arms)
            texts.append(f"users are not split as asked: {counts}; p is {self.mismatch_p:.1e}, so no difference holds")
        if self.changed:
            texts.append(f"{self.changed} users were in several arms, since arms changed meanwhile; they are left out")
        return texts

    def as_json(self) -> dict[str, Any]:
        """Plain values; a number that cannot be said is None."""
        differences = {
            arm: {task: {n: _said(v) for n, v in d._asdict().items()} for task, d in of_task.items()}
            for arm, of_task in self.differences.items()
        }
        return {
            "begin_ms": self.interval.begin_ms,
            "end_ms": self.interval.end_ms,
            "arms": [
                {
                    "arm": arm.name, "share": arm.share, "users": self.users[arm.name],
                    "impressions": self.impressions[arm.name],
                    "rates": {task: _said(rate) for task, rate in self.rates[arm.name].items()},
                }
                for arm in self.arms
            ],
            "differences": differences,
            "mismatch_p": self.mismatch_p,
            "warnings": self.warnings,
        }  # fmt: skip


def results(
    archive: Archive, declaration: Declaration, arms: Sequence[Arm], begin_ms: int | None = None,
    end_ms: int | None = None,
) -> Results:  # fmt: skip
    """The results of the impressions of [begin_ms, end_ms), whole seconds.

    By default they begin with the first impression of an arm other than the first one, and end where the windows of
    all actions are closed. An action counts once an impression and task, within the window. Raises InputError.
    """
    until_ms = min(archive.until_ms(IMPRESSIONS), archive.until_ms(ACTIONS) - declaration.window_ms)
    closed = (until_ms + 1) // 1000 * 1000
    end_ms = closed if end_ms is None else end_ms
    since_ms = max(0, archive.since_ms(IMPRESSIONS)) // 1000 * 1000
    if end_ms <= since_ms:
        raise InputError("no window of an experiment's actions is closed in the archive yet; ask again later")
    if begin_ms is None:
        begin_ms = _first_of_others(archive.read(IMPRESSIONS, since_ms, end_ms), arms)
    interval = Interval(begin_ms, end_ms)
    shown = _shown(archive, interval, arms)
    before = _before(archive, declaration, interval, since_ms)
    users, arm_of, place = _users(shown)
    several = np.zeros(len(users), bool)
    np.logical_or.at(several, place, shown["arm"] != arm_of[place])
    counts = np.bincount(place, minlength=len(users)).astype(float)
    acted = _acted(archive, declaration, interval, shown)
    covariate = np.array([before.get(int(user), 0.0) for user in users])
    of_arm = {arm.name: (arm_of == n) & ~several for n, arm in enumerate(arms)}
    tasks = {
        task: {
            name: Users(np.bincount(place, hits, len(users))[mask], counts[mask], covariate[mask])
            for name, mask in of_arm.items()
        }
        for task, hits in acted.items()
    }
    first = arms[0].name
    sizes = {name: int(mask.sum()) for name, mask in of_arm.items()}
    return Results(
        interval, arms, sizes, {name: int(counts[mask].sum()) for name, mask in of_arm.items()},
        {arm.name: {task: of[arm.name].rate for task, of in tasks.items()} for arm in arms},
        {a.name: {task: compared(of[a.name], of[first]) for task, of in tasks.items()} for a in arms[1:]},
        mismatch([sizes[arm.name] for arm in arms], [arm.share for arm in arms]), int(several.sum()),
    )  # fmt: skip


def _first_of_others(impressions: pa.Table, arms: Sequence[Arm]) -> int:
    others = pc.is_in(impressions["arm"], pa.array([arm.name for arm in arms[1:]], pa.string()))
    times = impressions["ts_ms"].filter(others)
    if not len(times):
        names = ", ".join(arm.name for arm in arms[1:]) or "none: set arms, such as served:50,frozen:50"
        raise InputError(f"the archive has no impression of another arm than {arms[0].name!r}; the others are {names}")
    return int(pc.min(times).as_py()) // 1000 * 1000


def _shown(archive: Archive, interval: Interval, arms: Sequence[Arm]) -> dict[str, Any]:
    """The impressions of the arms, each id once: its id, user, time, and the place of its arm."""
    table = archive.read(IMPRESSIONS, interval.begin_ms, interval.end_ms)
    arm = pc.index_in(table["arm"], pa.array([arm.name for arm in arms], pa.string()))
    table = table.append_column("place", arm).filter(pc.is_valid(arm))
    _, first = np.unique(table["impression_id"].to_numpy(), return_index=True)
    table = table.take(np.sort(first))
    return {
        "id": table["impression_id"],
        **{name: table[of].to_numpy() for name, of in (("user", "user_id"), ("ts", "ts_ms"), ("arm", "place"))},
    }


def _users(shown: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The users int64[n], the place of each one's first arm, and each impression's user as a place in them."""
    users, first, place = np.unique(shown["user"], return_index=True, return_inverse=True)
    return users, shown["arm"][first], place


def _acted(
    archive: Archive, declaration: Declaration, interval: Interval, shown: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """Task -> 1 for each impression that had the action within the window, else 0: float64[n]."""
    actions = archive.read(ACTIONS, interval.begin_ms, interval.end_ms + declaration.window_ms)
    found = pc.index_in(actions["impression_id"], shown["id"].combine_chunks()).to_pandas().to_numpy(float, na_value=-1)
    known = found >= 0
    places, names = found[known].astype(np.int64), np.asarray(actions["action"].to_pylist(), object)[known]
    age = actions["ts_ms"].to_numpy()[known] - shown["ts"][places]
    inside = (age >= 0) & (age <= declaration.window_ms)
    hits = {}
    for task in declaration.tasks:
        hits[task] = np.zeros(len(shown["ts"]))
        hits[task][places[inside & (names == task)]] = 1.0
    return hits


def _before(
    archive: Archive, declaration: Declaration, interval: Interval, since_ms: int
) -> dict[int, float]:  # fmt: skip
    """User -> their judged actions less the expected ones, in the week before; of a user without any, nothing."""
    begin_ms = max(since_ms, interval.begin_ms - BEFORE_MS)
    if begin_ms >= interval.begin_ms:
        return {}
    every = archive.read(IMPRESSIONS, begin_ms, interval.begin_ms)
    shown = {"id": every["impression_id"], "user": every["user_id"].to_numpy(), "ts": every["ts_ms"].to_numpy()}
    week = Interval(begin_ms, interval.begin_ms)
    hits = _acted(archive, declaration, week, shown)[declaration.judged]
    users, place = np.unique(shown["user"], return_inverse=True)
    expected = hits.mean() * np.bincount(place, minlength=len(users)) if len(hits) else np.zeros(0)
    return dict(zip(users.tolist(), (np.bincount(place, hits, len(users)) - expected).tolist(), strict=True))


def _said(value: float) -> float | None:
    return value if math.isfinite(value) else None
