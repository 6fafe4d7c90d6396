"""Feast's DuckDB offline store, in which the counted views have a row for exactly the requested keys and times.

The views `activity` and `counters` have no rows of their own: their values follow from the log of counts
(features/adds.py). For a historical read this store makes their rows at the requests' times. Feast's own point-in-time
join then picks them, beside the logged rows of the attribute views.

feature_repo/feature_store.yaml and feature_store.compose.yaml name this store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.ibis import get_historical_features_ibis
from feast.infra.offline_stores.offline_store import RetrievalJob

from common.errors import InputError
from features.adds import AddLog, past
from features.counted import ENTITY
from features.offline import ARROW, STAMP
from features.plan import Plan, plan_of

AT = "event_timestamp"


class MergingOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """The store's configuration. Feast finds this class by its name, and the store's class by `type`."""

    type: Any = "features.offline_store.MergingOfflineStore"


class MergingOfflineStore(DuckDBOfflineStore):
    """Makes the rows of the counted views that a historical read needs."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        if not isinstance(entity_df, pd.DataFrame):
            raise InputError("entity_df is SQL, allowed is a table of pandas")
        settings = config.online_store
        plan, log = plan_of(settings.source), AddLog(Path(settings.path), plan_of(settings.source).slots)
        made = {}
        for view in feature_views:
            if view.name in ENTITY:
                columns = [ref.split(":")[1] for ref in feature_refs if ref.startswith(f"{view.name}:")]
                made[f"{view.name}_table"] = instants(log, plan, view.name, columns, entity_df)

        def read(source: Any, repo: str) -> Any:
            return ibis.memtable(made[source.name]) if source.name in made else ibis.read_parquet(source.path)

        return get_historical_features_ibis(
            config, feature_views, feature_refs, entity_df, registry, project, read, _refuse, full_feature_names,
            filter_by_created_timestamp=filter_by_created_timestamp,
        )  # fmt: skip


def instants(log: AddLog, plan: Plan, view: str, names: list[str], requests: pd.DataFrame) -> pa.Table:
    """The rows of a counted view for the requests' keys at their times, each pair once."""
    key = plan.key(view)
    pairs = requests[[key, AT]].drop_duplicates()
    stamps = pa.array(pd.to_datetime(pairs[AT], utc=True)).cast(STAMP)
    keys, at_ms = pairs[key].tolist(), (np.asarray(stamps.cast(pa.int64())) // 1000).tolist()
    values = past(log, plan, view, names, keys, at_ms)
    kinds = {column.name: ARROW[column.kind] for column in plan.columns[view]}
    columns = {key: pa.array(keys, pa.int64()), **{name: pa.array(values[name], kinds[name]) for name in names}}
    return pa.table({**columns, AT: stamps, "arrived": stamps})


def _refuse(*_: Any) -> None:
    raise InputError("a saved data set is not written by this store; allowed is to read it as a table")
