"""The tombstones of a profile store: up to which time each forgotten profile is forgotten."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.profile.database import Connection
from features.profile.rows import Int64s
from streaming.slots import Slots

ENTITIES = ("user", "item")


class Tombstones:
    """The tombstones of all commits so far, and of the open one."""

    def __init__(self, connection: Connection, declared: Slots) -> None:
        self._entities = np.array([ENTITIES.index(slot.entity) for slot in declared.slots], np.int64)
        self._until: list[dict[int, int]] = [{} for _ in ENTITIES]
        for entity, profile, at_ms in connection.execute("SELECT entity, profile, at_ms FROM tombstones"):
            self._until[entity][profile] = at_ms
        self._sorted: list[tuple[Int64s, Int64s] | None] = [None for _ in ENTITIES]

    def put(self, connection: Connection, entity: int, profile: int, at_ms: int) -> None:
        """Keeps a tombstone. Of several of a profile the latest stands."""
        values = entity, profile, max(at_ms, self._until[entity].get(profile, at_ms))
        connection.execute("INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?)", values)
        self._until[entity][profile] = values[2]
        self._sorted[entity] = None

    def cover(self, slot: Int64s, profile: Int64s, ts_ms: Int64s) -> NDArray[np.bool_]:
        """Whether each add of a slot, a profile and a time is forgotten."""
        covered, entities = np.zeros(len(slot), bool), self._entities[slot]
        for entity in range(len(ENTITIES)):
            profiles, until = self._arrays(entity)
            if not len(profiles):
                continue
            rows = np.flatnonzero(entities == entity)
            at = np.minimum(np.searchsorted(profiles, profile[rows]), len(profiles) - 1)
            covered[rows] = (profiles[at] == profile[rows]) & (ts_ms[rows] <= until[at])
        return covered

    def _arrays(self, entity: int) -> tuple[Int64s, Int64s]:
        """The forgotten profiles of an entity in order, and until when each one is."""
        arrays = self._sorted[entity]
        if arrays is None:
            of_entity = sorted(self._until[entity].items())
            arrays = self._sorted[entity] = tuple(np.array(of_entity, np.int64).reshape(-1, 2).T)  # type: ignore[assignment]
        assert arrays is not None
        return arrays
