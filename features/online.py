"""What the newest features of a source are read from: the rows of attributes, and the profile store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from features.plan import plan_of
from features.popular import listed
from features.profile.replica import RedisProfiles
from features.profile.store import Profiles
from features.rows import RedisRows, Rows, SqliteRows

NOW, ARRIVED, POPULAR = "now_ms", "arrived_ms", "popular"
"""Notes of the profile store: event time at the last commit, the wall time at which it became readable, and the items
that were shown most then (features/popular.py)."""
PROFILES = "MINUTEHAND_PROFILES"
"""The variable that names the Redis of the profiles: redis://host:port/number. Without it they are read from SQLite."""
MOST_KEPT = 20_000
"""So many rows of a view are kept at most: some 20 MB."""


class Online:
    """What reads need, of one feature folder and source: the rows of attributes, and the profile store."""

    def __init__(self, folder: Path, source: str, redis: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._plan = folder, plan_of(source)
        self._counted, self._attributes = _Kept(), _Kept()
        self.rows: Rows = RedisRows(redis) if redis else SqliteRows(folder / "online.db")

    @cached_property
    def _profiles(self) -> Profiles | RedisProfiles:
        if address := os.environ.get(PROFILES):
            return RedisProfiles(address, self._plan.slots)
        return Profiles(self._folder, self._plan.slots)

    def now_ms(self) -> int:
        """The push's clock of event time at its last commit; 0 before the first one."""
        return max(0, int(self._profiles.noted(NOW) or 0))

    def popular(self, window: str) -> list[int]:
        """The items that were shown most in a window at the last commit."""
        note = self._profiles.noted(POPULAR)
        return listed(note, window) if note else []

    def counted(self, view: str, names: Sequence[str], keys: Sequence[int]) -> dict[str, list[Any]]:
        """Columns of a counted view, merged at the push's clock: column -> value of each key.

        Between two commits of the push a key's values do not change.
        """

        def merged(missing: list[int]) -> Iterable[tuple[Any, ...]]:
            found = self._plan.counted.read(self._profiles, view, names, missing, self.now_ms())
            return zip(*(found[name] for name in names), strict=True)

        return self._counted.columns(self._profiles.noted(ARRIVED), view, names, keys, merged) if names else {}

    def attributes(self, view: str, names: Sequence[str], keys: Sequence[int]) -> dict[str, list[Any]]:
        """Columns of an attribute view: column -> value of each key, None if there is none."""

        def unpacked(missing: list[int]) -> Iterable[tuple[Any, ...]]:
            for row in self.rows.read(view, missing):
                columns = row[1] if row else {}
                yield tuple(columns.get(name) for name in names)

        return self._attributes.columns(self.rows.state(), view, names, keys, unpacked)


class _Kept:
    """Columns that were read since the last change of what they are read from."""

    def __init__(self) -> None:
        self._rows: tuple[object, dict[tuple[str, ...], dict[int, tuple[Any, ...]]]] = None, {}
        """The state, and the rows of that state."""

    def columns(
        self, state: object, view: str, names: Sequence[str], keys: Sequence[int],
        read: Callable[[list[int]], Iterable[tuple[Any, ...]]],
    ) -> dict[str, list[Any]]:  # fmt: skip
        """Column -> value of each key. `read` gives the rows of the keys that were not read in this `state`.

        Each change has its own state. In the state None nothing is kept from call to call.
        """
        of_state, views = self._rows
        if state is None or state != of_state:
            _, views = self._rows = state, {}
        rows = views.setdefault((view, *names), {})
        if missing := [key for key in keys if key not in rows]:
            if len(rows) + len(missing) > MOST_KEPT:
                rows = views[(view, *names)] = {}
                missing = list(keys)
            rows.update(zip(missing, read(missing), strict=True))
        columns = zip(*[rows[key] for key in keys], strict=True)
        return dict(zip(names, map(list, columns), strict=True)) if keys else {name: [] for name in names}
