"""The same features through Feast's own online read, as anybody else would read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from features.plan import GIVEN, SERVICE, TS
from features.store import Features


def read(
    store: Features, user_id: int, item_ids: Sequence[int], ts_ms: Sequence[int], requests: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The declared features of a user and each of some items, with their defaults."""
    plan, rows = store.plan, []
    for item_id, at_ms, given in zip(item_ids, ts_ms, requests, strict=True):
        values = {f: given.get(f.name, f.default) for f in plan.features["request"]}
        # Feast cannot tell the type of an empty list.
        asked = {GIVEN + f.name: list(v) or None if f.kind == "ids" else v for f, v in values.items()}
        rows.append({plan.user_key: user_id, plan.item_key: item_id, TS: at_ms, **asked})
    service = store.feast.get_feature_service(SERVICE)
    columns = store.feast.get_online_features(features=service, entity_rows=rows).to_dict()
    found = []
    for k, item_id in enumerate(item_ids):
        row: dict[str, Any] = {}
        for f in plan.declaration.features:
            value = {"user": user_id, "item": item_id}.get(f.view)
            value = columns[f.name][k] if value is None else value
            value = f.default if value is None else value
            row[f.name] = list(value) if f.kind == "ids" else value
        found.append(row)
    return found
