"""Feast's SQLite online store, in which an older event never overwrites a newer one.

Feast's own SQLite store keeps what was written last, and its times are in seconds. Here each write compares event times
inside the transaction that writes. So the newest event stays under any number of pushers, through Feast's own push and
materialize, and after a restart. (Feast's Redis store compares by itself, but it reads before it writes: two pushers of
one key can race there.)

feature_repo/feature_store.yaml names this store. A counted view has its event time in milliseconds as a column.
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
    """The store's configuration. Feast finds this class by its name, and the store's class by `type`."""

    type: Any = "features.online_store.NewestSqliteOnlineStore"


class NewestSqliteOnlineStore(SqliteOnlineStore):
    """Keeps the row of the newest event of each key. A row of the same time replaces it (a correction)."""

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
        """Key -> event time of the stored row, in milliseconds."""
        # A private function: the public online_read decodes every column of a row, which costs half a write.
        from feast.infra.online_stores.sqlite import _table_id
        from feast.protos.feast.types.Value_pb2 import Value

        name = _table_id(config.project, table, config.registry.enable_online_feature_view_versioning)
        keys = [_key(config, entity) for entity in entities]
        event_ms: dict[bytes, int] = {}
        # One column of a row is enough: all columns have the same time.
        column = EVENT_MS.get(table.name, table.features[0].name)
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            places = ",".join("?" * len(some))
            where = f"feature_name = ? AND entity_key IN ({places})"
            query = f'SELECT entity_key, value, event_ts FROM "{name}" WHERE {where}'
            for key, value, event_ts in conn.execute(query, (column, *some)):
                if column in EVENT_MS.values():
                    event_ms[key] = int(Value.FromString(value).int64_val)
                else:
                    event_ms[key] = _ms(event_ts.replace(tzinfo=UTC))
        return event_ms


def _key(config: RepoConfig, entity: Any) -> bytes:
    version = config.entity_key_serialization_version
    return bytes(serialize_entity_key(entity, entity_key_serialization_version=version))


def _event_ms(table: FeatureView, row: Any) -> int:
    """The event time of a row to write. A view without a column of it has whole seconds, as the store keeps them."""
    column = EVENT_MS.get(table.name)
    if column is not None:
        return int(row[1][column].int64_val)
    event_ts: datetime = row[2]
    return _ms(event_ts if event_ts.tzinfo else event_ts.replace(tzinfo=UTC)) // 1000 * 1000


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
