"""Feast's online store on what the platform keeps: packed rows of attributes, and profiles that are merged at the read.

The views `profile` and `video` are read from packed rows (features/rows.py). The views `activity` and `counters` are
read from the profile store at the time of the push's clock. So a window of a user who does nothing empties by itself.
They take no rows: the feature push counts.

feature_repo/feature_store.yaml and feature_store.compose.yaml name this store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from feast.type_map import python_values_to_proto_values

from common.errors import InputError
from features.counted import ENTITY
from features.online import Online


class MergingOnlineStoreConfig(FeastConfigBaseModel):
    """The store's configuration. Feast finds this class by its name, and the store's class by `type`.

    `path` is the feature folder, `source` the source's name, `redis` the host:port of the rows ("": SQLite).
    """

    type: Any = "features.online_store.MergingOnlineStore"
    path: str
    source: str
    redis: str = ""


class MergingOnlineStore(OnlineStore):
    """Reads and writes the rows of attributes, and merges profiles at the read."""

    def __init__(self) -> None:
        self._opened: dict[tuple[str, ...], Online] = {}

    def of(self, config: RepoConfig) -> Online:
        """What the configuration names, opened once."""
        settings = config.online_store
        key = settings.path, settings.source, settings.redis
        if key not in self._opened:
            self._opened[key] = Online(Path(settings.path), settings.source, settings.redis)
        return self._opened[key]

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[Any], progress: Callable[[int], Any] | None
    ) -> None:
        if table.name in ENTITY:
            raise InputError(
                f"view {table.name} takes no rows, since the feature push counts; allowed is profile or video"
            )
        rows: dict[int, tuple[int, dict[str, Any]]] = {}
        for entity, values, event_time, _ in data:
            event_ms, key = _ms(event_time), _key(entity)
            if key not in rows or event_ms >= rows[key][0]:
                rows[key] = event_ms, {name: _plain(value) for name, value in values.items()}
        self.of(config).rows.write(table.name, rows)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[Any],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        names = requested_features or [field.name for field in table.features]
        keys, online = [_key(entity) for entity in entity_keys], self.of(config)
        if table.name in ENTITY:
            now_ms = online.now_ms()
            columns = online.counted(table.name, names, keys)
            times: list[int | None] = [now_ms] * len(keys)
        else:
            found = online.rows.read(table.name, keys)
            times = [row and row[0] for row in found]
            columns = {name: [row and row[1].get(name) for row in found] for name in names}
        types = {field.name: field.dtype.to_value_type() for field in table.features}
        protos = [python_values_to_proto_values(columns[name], types[name]) for name in names]
        rows = zip(times, zip(*protos, strict=True), strict=True)
        return [
            (None, None) if at is None else (datetime.fromtimestamp(at / 1000, UTC), dict(zip(names, row, strict=True)))
            for at, row in rows
        ]

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
        partial: bool,
    ) -> None:
        self.of(config).rows.clear(table.name for table in tables_to_delete)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Any]) -> None:
        self.of(config).rows.clear(table.name for table in tables)


def _key(entity: Any) -> int:
    (value,) = entity.entity_values
    return int(value.int64_val)


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("val")
    if kind is None:
        return None
    stored = getattr(value, kind)
    return list(stored.val) if kind.endswith("_list_val") else stored


def _ms(at: datetime) -> int:
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
