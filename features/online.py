"""What the newest features of a source are read from: the rows of attributes, and the profile store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from features.plan import plan_of
from features.popular import listed
from features.profile.store import Profiles
from features.rows import RedisRows, Rows, SqliteRows

NOW, ARRIVED, POPULAR = "now_ms", "arrived_ms", "popular"
"""Notes of the profile store: event time at the last commit, the wall time at which it became readable, and the items
that were shown most then (features/popular.py)."""


class Online:
    """What reads need, of one feature folder and source: the rows of attributes, and the profile store."""

    def __init__(self, folder: Path, source: str, redis: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._plan = folder, plan_of(source)
        self._cache: dict[tuple[str, ...], dict[int, tuple[Any, ...]]] = {}
        self._cached_at: bytes | None = None
        self.rows: Rows = RedisRows(redis) if redis else SqliteRows(folder / "online.db")

    @cached_property
    def _profiles(self) -> Profiles:
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

        Between two commits a key's values do not change. So they are merged once, and kept until the next commit.
        """
        if not names or not keys:
            return {name: [] for name in names}
        state = self._profiles.noted(ARRIVED)
        if state != self._cached_at:
            self._cached_at, self._cache = state, {}
        kept = self._cache.setdefault((view, *names), {})
        if missing := [key for key in keys if key not in kept]:
            found = self._plan.counted.read(self._profiles, view, names, missing, self.now_ms())
            kept.update(zip(missing, zip(*(found[name] for name in names), strict=True), strict=True))
        columns = zip(*(kept[key] for key in keys), strict=True)
        return {name: list(values) for name, values in zip(names, columns, strict=True)}
