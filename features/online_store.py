"""Feast's SQLite online store, in which an older event never overwrites a newer one.

Feast's own keeps whatever was written last, and times to the second. Here each write compares event times inside the
transaction that writes, so that it holds for any number of pushers, for Feast's own push and materialize, and after a
restart. (Its Redis store compares by itself, but reads before it writes: two pushers of one key can race there.)

Named in feature_repo/feature_store.yaml; a counted view carries its event time in milliseconds as a column.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig

from features.plan import EVENT_MS

_AT_ONCE = 500


class NewestSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    """Feast finds it by its name, and the class by `type`."""

    type: Any = "features.online_store.NewestSqliteOnlineStore"


class NewestSqliteOnlineStore(SqliteOnlineStore):
    """Keeps, of each key, the row of the newest event; the same time again replaces it (a correction)."""

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[Any], progress: Callable[[int], Any] | None
    ) -> None:
        conn = self._get_conn(config)
        conn.execute("PRAGMA journal_mode=WAL")
        conn.execute("PRAGMA synchronous=NORMAL")
        conn.execute("BEGIN IMMEDIATE")  # one writer at a time from here to the commit
        try:
            stored = self._stored(conn, config, table, [entity for entity, *_ in data])
            newest: dict[bytes, int] = dict(stored)
            fresh = []
            for row in data:
                key, at = _key(config, row[0]), _event_ms(table, row)
                if at >= newest.get(key, at):
                    newest[key] = at
                    fresh.append(row)
            super().online_write_batch(config, table, fresh, None)
        finally:
            if conn.in_transaction:
                conn.rollback()
        if progress:
            progress(len(data))

    def _stored(self, conn: Any, config: RepoConfig, table: FeatureView, entities: list[Any]) -> dict[bytes, int]:
        """Key -> event time of the row that stands there, in milliseconds."""
        # Private: the public online_read decodes every column of a row, and a write would take half as long again.
        from feast.infra.online_stores.sqlite import _table_id
        from feast.protos.feast.types.Value_pb2 import Value

        name = _table_id(config.project, table, config.registry.enable_online_feature_view_versioning)
        keys = [_key(config, entity) for entity in entities]
        found: dict[bytes, int] = {}
        # One column of a row is enough: all of a row are of one time.
        column = EVENT_MS.get(table.name, table.features[0].name)
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            places = ",".join("?" * len(some))
            where = f"feature_name = ? AND entity_key IN ({places})"
            asked = f'SELECT entity_key, value, event_ts FROM "{name}" WHERE {where}'
            for key, value, event_ts in conn.execute(asked, (column, *some)):
                if column in EVENT_MS.values():
                    found[key] = int(Value.FromString(value).int64_val)
                else:
                    found[key] = _ms(event_ts.replace(tzinfo=UTC))
        return found


def _key(config: RepoConfig, entity: Any) -> bytes:
    version = config.entity_key_serialization_version
    return bytes(serialize_entity_key(entity, entity_key_serialization_version=version))


def _event_ms(table: FeatureView, row: Any) -> int:
    """The event time of a row to write; without a column of it to the second, as the store keeps it."""
    column = EVENT_MS.get(table.name)
    if column is not None:
        return int(row[1][column].int64_val)
    event_ts: datetime = row[2]
    return _ms(event_ts if event_ts.tzinfo else event_ts.replace(tzinfo=UTC)) // 1000 * 1000


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
