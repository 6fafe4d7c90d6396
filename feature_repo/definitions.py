"""Defines Feast's entities, views and the model's feature service, for the source MINUTEHAND_SOURCE.

    MINUTEHAND_SOURCE=simulator MINUTEHAND_FEATURES=$PWD/var/local/features feast -c feature_repo apply

The columns are those of the source's declaration and views. The feature folder MINUTEHAND_FEATURES holds each view's
rows, offline/<view>/*.parquet.
"""

import os
from datetime import timedelta
from typing import Any

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    RequestSource,
    ValueType,
)
from feast.data_format import ParquetFormat
from feast.types import Array, Float64, Int64

from features.plan import GIVEN, SERVICE, TS, plan_of

SOURCE = os.environ["MINUTEHAND_SOURCE"]
FOLDER = os.environ["MINUTEHAND_FEATURES"]
PLAN = plan_of(SOURCE)
TYPES = {"int": Int64, "ints": Array(Int64), "number": Float64, "id": Int64, "ids": Array(Int64)}
DESCRIPTIONS = {
    "profile": "columns of a user, from the source's table",
    "video": "columns of an item, from the source's table",
    "activity": "what the slots of users count, merged at the read",
    "counters": "what the slots of items count, merged at the read",
}

user = Entity(name="user", join_keys=[PLAN.user_key], value_type=ValueType.INT64)
item = Entity(name="item", join_keys=[PLAN.item_key], value_type=ValueType.INT64)


def view(name: str) -> FeatureView:
    """The view `name` of the source. A counted view has no rows: its values are merged at each read."""
    table = FileSource(
        name=f"{name}_table",
        path=f"{FOLDER}/offline/{name}/*.parquet",
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="arrived",  # when the row became readable, for the offline join
    )
    key = PLAN.key(name)
    return FeatureView(
        name=name,
        entities=[user if key == PLAN.user_key else item],
        ttl=timedelta(0),  # Feast checks ages offline only
        schema=[Field(name=key, dtype=Int64), *(Field(name=c.name, dtype=TYPES[c.kind]) for c in PLAN.columns[name])],
        source=table,
        description=DESCRIPTIONS[name],
    )


views = {name: view(name) for name in PLAN.columns}
profile, video = views.get("profile"), views.get("video")
activity, counters = views["activity"], views["counters"]
computed_from = [
    *(of_source for of_source in (profile, video) if of_source),
    *(views[name][names] for name, names in PLAN.inputs.items() if names),
]

request = RequestSource(
    name="request",
    schema=[
        Field(name=TS, dtype=Int64),
        *(Field(name=GIVEN + f.name, dtype=TYPES[f.kind]) for f in PLAN.features["request"]),
    ],
)


# Feast stores this text and runs it wherever it reads the registry, so it must import what it needs.
COMPUTE = f"""def compute(inputs):
    from features.plan import on_demand

    return on_demand({SOURCE!r}, inputs)
"""
functions: dict[str, Any] = {}
exec(COMPUTE, functions)

derived = None
if PLAN.on_demand:
    derived = OnDemandFeatureView(
        name="on_demand",
        sources=[request, *computed_from],
        schema=[Field(name=f.name, dtype=TYPES[f.kind]) for f in PLAN.on_demand],
        mode="python",
        udf=functions["compute"],
        udf_string=COMPUTE,
        description="ages, rates and crosses, and the features of the request",
    )

ranker = FeatureService(
    name=SERVICE,
    features=[
        *(views[name][[f.name for f in PLAN.features[name]]] for name in ("profile", "video") if PLAN.features[name]),
        *([derived] if derived else []),
    ],
    description="the model's inputs: with the entities' keys, the declaration's features",
)
