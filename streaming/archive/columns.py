"""Tables of examples, impressions and actions with plain typed columns, as the archive has them (docs/archive.md).

    table = to_table(batch, declaration)        # feature_<name>, label_<task>, weight_<task>, score_<task>, ...
    batch = from_table(table, declaration)      # the same examples again; other columns are ignored
    table = filled(table, topic, declaration)   # with the columns that the source has now

Times are int64 milliseconds. `partition` and `offset` are a record's place in Kafka.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.declaration import Declaration
from streaming.example import Batch, Ragged, feature_column
from streaming.topics import ACTIONS, EXAMPLES, IMPRESSIONS

PLACE = [("partition", pa.int32()), ("offset", pa.int64())]
TIME = {EXAMPLES: "event_ms", IMPRESSIONS: "ts_ms", ACTIONS: "ts_ms"}
"""The column whose hour a record is archived under."""
_ARROW = {"id": pa.int64(), "ids": pa.list_(pa.int64()), "number": pa.float32()}
_INTEGERS = ("user_id", "item_id", "ts_ms", "position", "event_ms", "written_ms", "seq")
_PER_TASK = {"label": "labels", "weight": "weights", "score": "scores", "value": "values"}


def schemas(declaration: Declaration) -> dict[str, pa.Schema]:
    """Topic -> the columns of its files. A score is null if nothing scored the record."""
    features = [(f"feature_{f.name}", _ARROW[f.kind]) for f in declaration.features]
    scores = [(f"score_{task}", pa.float32()) for task in declaration.tasks]
    values = [(f"value_{task}", pa.float64()) for task in declaration.tasks]
    judged = [(f"{column}_{task}", pa.float32()) for column in ("label", "weight") for task in declaration.tasks]
    text, whole = pa.string(), pa.int64()
    return {
        EXAMPLES: pa.schema(
            [("impression_id", text), ("request_id", text), ("kind", text), ("lineage", text)]
            + [*((n, whole) for n in _INTEGERS), ("pi", pa.float64()), *judged, *scores, *values, *features, *PLACE]
        ),
        IMPRESSIONS: pa.schema(
            [("impression_id", text), ("request_id", text), ("user_id", whole), ("item_id", whole), ("ts_ms", whole)]
            + [("position", pa.int32()), ("lineage", text), ("seq", whole), ("arm", text), ("read_ms", whole)]
            + [("written_ms", whole), *scores, *features, *PLACE]
        ),
        ACTIONS: pa.schema(
            [("impression_id", text), ("action", text), ("ts_ms", whole), ("value", pa.float64())]
            + [("written_ms", whole), *PLACE]
        ),
    }


def to_table(batch: Batch, declaration: Declaration) -> pa.Table:
    """Makes a table of a batch, without `partition` and `offset`."""
    columns: dict[str, Any] = {
        "impression_id": batch.impression_id,
        "request_id": batch.request_id,
        "kind": pa.array(batch.kind, pa.string()),
        "lineage": batch.lineage,
        **{name: pa.array(getattr(batch, name), pa.int64()) for name in _INTEGERS},
        "pi": pa.array(batch.pi, pa.float64()),
    }
    for prefix, matrix in _PER_TASK.items():
        for place, task in enumerate(declaration.tasks):
            values = np.ascontiguousarray(getattr(batch, matrix)[:, place])
            # from_pandas: NaN becomes null. Labels and weights have none.
            columns[f"{prefix}_{task}"] = pa.array(values, from_pandas=True)
    for f in declaration.features:
        column = batch.features[f.name]
        if isinstance(column, Ragged):
            offsets = pa.array(column.row_splits.astype(np.int32))
            columns[f"feature_{f.name}"] = pa.ListArray.from_arrays(offsets, pa.array(column.values, pa.int64()))
        else:
            columns[f"feature_{f.name}"] = pa.array(column, _ARROW[f.kind])
    schema = schemas(declaration)[EXAMPLES]
    return pa.table(columns, schema=pa.schema([schema.field(n) for n in schema.names if n in columns]))


def filled(table: pa.Table, topic: str, declaration: Declaration) -> pa.Table:
    """The columns of the declaration, in their order: those that the table lacks are of a source that has grown since.

    A feature has its default. A task has no label: weight 0. A score or value is null.
    """
    schema = schemas(declaration)[topic]
    values: dict[str, Any] = {f"feature_{f.name}": f.default for f in declaration.features}
    for task in declaration.tasks:
        values |= {f"label_{task}": 0, f"weight_{task}": 0, f"score_{task}": None, f"value_{task}": None}

    def column(field: pa.Field) -> Any:
        if field.name in table.schema.names:
            return table[field.name]
        value = values[field.name]
        return pa.repeat(pa.scalar(list(value) if isinstance(value, tuple) else value, field.type), table.num_rows)

    if table.schema.names == schema.names:
        return table
    return pa.table({field.name: column(field) for field in schema if field.name in {*table.schema.names, *values}})


def from_table(table: pa.Table, declaration: Declaration) -> Batch:
    """Makes a batch of a table. Raises ValueError, which names a column that is missing or of another type."""
    expected = schemas(declaration)[EXAMPLES]
    for field in expected:
        if field.name in ("partition", "offset"):
            continue
        if field.name not in table.schema.names:
            raise ValueError(f"examples of {declaration.name}: column {field.name} is missing")
        kind = table.schema.field(field.name).type
        if kind != field.type:
            raise ValueError(f"examples of {declaration.name}: column {field.name} is {kind}, allowed is {field.type}")
    table = table.combine_chunks()

    def matrix(prefix: str) -> Any:
        columns = [pc.fill_null(table[f"{prefix}_{task}"], np.nan).to_numpy() for task in declaration.tasks]
        return np.stack(columns, axis=1).reshape(table.num_rows, len(declaration.tasks))

    def text(name: str) -> pa.Array:
        column = pc.fill_null(table[name], "")
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)

    return Batch(
        impression_id=text("impression_id"),
        request_id=text("request_id"),
        lineage=text("lineage"),
        kind=np.where(table["kind"].to_numpy(zero_copy_only=False) == "positive", "positive", "negative"),
        **{name: table[name].to_numpy() for name in _INTEGERS},
        pi=table["pi"].to_numpy(),
        labels=matrix("label"),
        weights=matrix("weight"),
        scores=matrix("score"),
        values=matrix("value"),
        line=np.arange(table.num_rows),
        features={f.name: feature_column(table[f"feature_{f.name}"], f) for f in declaration.features},
    )
