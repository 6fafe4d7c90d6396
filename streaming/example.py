"""Decodes examples (docs/example.md) by column, for training.

JSON lines become a `Batch` of arrays. `Batch.bad` has each line that is no example, with the reason. Such a line does
not change how the other lines are decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain, islice
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

from streaming.contract.schema import MAX_SUBTASKS, MAX_TIME_MS, VERSION, rule
from streaming.declaration import RESERVED_IDS, Declaration, Feature
from streaming.source import Exposure

_INTEGERS = ("user_id", "item_id", "ts_ms", "position", "event_ms", "written_ms", "seq")
_TEXTS = ("impression_id", "request_id", "lineage")
_REQUIRED = ("impression_id", "user_id", "item_id", "ts_ms", "event_ms", "written_ms")
"""The required whole numbers and the id. The other required fields have rules of their own."""
_TIMES = ("ts_ms", "event_ms")
_NUMBER_LIMIT: float = rule("number")["exclusiveMaximum"]


class Ragged(NamedTuple):
    """An `ids` column: row i is values[row_splits[i] : row_splits[i + 1]]."""

    values: NDArray[np.int64]
    row_splits: NDArray[np.int64]


FeatureColumn = NDArray[Any] | Ragged
"""`id`: int64[n]; `number`: float32[n]; `ids`: Ragged."""


class Progress(NamedTuple):
    """A progress record of the join: subtask i of n has written all examples up to event time heartbeat_ms."""

    subtask: int
    subtasks: int
    heartbeat_ms: int


@dataclass
class Batch:
    """n examples by column. `line` and `progress_line` are the places of examples and progress among the lines."""

    impression_id: pa.Array
    request_id: pa.Array
    lineage: pa.Array
    kind: NDArray[np.str_]
    user_id: NDArray[np.int64]
    item_id: NDArray[np.int64]
    ts_ms: NDArray[np.int64]
    position: NDArray[np.int64]
    """The item's place in its request, from 0 on; -1 is unknown."""
    event_ms: NDArray[np.int64]
    written_ms: NDArray[np.int64]
    seq: NDArray[np.int64]
    pi: NDArray[np.float64]
    labels: NDArray[np.float32]
    """[n, tasks], as are `weights` and `scores` (NaN: not scored)."""
    weights: NDArray[np.float32]
    scores: NDArray[np.float32]
    values: NDArray[np.float64]
    """[n, tasks]: the value of the record's action, NaN for the other tasks."""
    line: NDArray[np.int64]
    features: dict[str, FeatureColumn]
    progress: list[Progress] = field(default_factory=list)
    progress_line: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    """(place in the lines, reason) of each line that is no example."""

    @property
    def size(self) -> int:
        return len(self.ts_ms)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """The examples at `rows`, in that order, without progress and bad lines."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        moved = {n: c.take(pa.array(rows)) if isinstance(c, pa.Array) else c[rows] for n, c in columns.items()}
        return Batch(**moved, features={n: _take(c, rows) for n, c in self.features.items()})

    def slice(self, start: int, stop: int) -> Batch:
        """The examples [start, stop)."""
        return self.take(np.arange(start, min(stop, self.size)))


_COLUMNS = tuple(f.name for f in fields(Batch) if f.name not in ("features", "progress", "progress_line", "bad"))


def concat(batches: Sequence[Batch]) -> Batch:
    """The examples of one or more batches, one after the other, without progress and bad lines."""
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        parts = [getattr(b, name) for b in batches]
        columns[name] = pa.concat_arrays(parts) if isinstance(parts[0], pa.Array) else np.concatenate(parts)
    features = {name: _concat([b.features[name] for b in batches]) for name in batches[0].features}
    return Batch(**columns, features=features)


def schema(declaration: Declaration) -> pa.Schema:
    """The columns of an example and of a progress record, as Arrow reads them from JSON."""
    arrow = {"id": pa.int64(), "ids": pa.list_(pa.int64()), "number": pa.float64()}
    return pa.schema(
        [
            ("v", pa.int64()),
            *((name, pa.string()) for name in ("kind", *_TEXTS)),
            *((name, pa.int64()) for name in _INTEGERS),
            ("pi", pa.float64()),
            ("labels", pa.list_(pa.float64())),
            ("weights", pa.list_(pa.float64())),
            ("values", pa.list_(pa.float64())),
            ("features", pa.struct([(f.name, arrow[f.kind]) for f in declaration.features])),
            ("scores", pa.struct([(task, pa.float64()) for task in declaration.tasks])),
            *((name, pa.int64()) for name in ("heartbeat_ms", "subtask", "subtasks")),
        ]
    )


def decode(lines: Sequence[bytes], declaration: Declaration) -> Batch:
    """Decodes JSON lines of one partition. No line makes it raise."""
    table, places, bad = _parse(lines, schema(declaration))
    is_progress = table["heartbeat_ms"].is_valid().to_numpy()
    beats = np.flatnonzero(is_progress)
    progress, progress_line = [], []
    numbers = [table[name].take(pa.array(beats)).to_pylist() for name in ("subtask", "subtasks", "heartbeat_ms")]
    for place, subtask, subtasks, heartbeat_ms in zip(places[beats].tolist(), *numbers, strict=True):
        if subtask is None or subtasks is None or not 0 <= subtask < subtasks <= MAX_SUBTASKS:
            bad.append((place, f"progress of subtask {subtask} of {subtasks}, allowed are up to {MAX_SUBTASKS}"))
        else:
            progress.append(Progress(subtask, subtasks, heartbeat_ms))
            progress_line.append(place)
    rows = np.flatnonzero(~is_progress)
    table, places = table.take(pa.array(rows)), places[rows]
    reasons = _judge(table, declaration)
    if reasons:
        bad += [(int(places[row]), reason) for row, reason in reasons.items()]
        good = np.setdiff1d(np.arange(len(places)), np.fromiter(reasons, np.int64))
        table, places = table.take(pa.array(good)), places[good]
    batch = _columns(table, places, declaration)
    batch.progress, batch.progress_line, batch.bad = progress, progress_line, sorted(bad)
    return batch


def from_exposures(exposures: Iterable[Exposure], declaration: Declaration) -> Batch:
    """Makes one example of each exposure, as after its window: all labels are final, all weights are 1, pi is 1."""
    shown = list(exposures)
    n, tasks = len(shown), declaration.tasks
    ts_ms = np.fromiter((e.ts_ms for e in shown), np.int64, n)
    labels = np.zeros((n, len(tasks)), np.float32)
    place, window_ms = {task: k for k, task in enumerate(tasks)}, declaration.window_ms
    positives = [
        (row, place[action])
        for row, e in enumerate(shown)
        for action, at_ms in e.outcomes.items()
        if action in place and e.ts_ms <= at_ms <= e.ts_ms + window_ms
    ]
    labels[tuple(zip(*positives, strict=True)) or ([], [])] = 1
    values = np.where(labels > 0, 1.0, np.nan)
    for row, task in positives:
        values[row, task] = shown[row].values.get(tasks[task], 1.0)
    features = [e.features for e in shown]
    return Batch(
        impression_id=pa.array([e.impression_id for e in shown], pa.string()),
        request_id=pa.array([""] * n, pa.string()),
        lineage=pa.array([""] * n, pa.string()),
        kind=np.full(n, "history"),
        user_id=np.fromiter((e.user_id for e in shown), np.int64, n),
        item_id=np.fromiter((e.item_id for e in shown), np.int64, n),
        ts_ms=ts_ms,
        position=np.full(n, -1),  # unknown
        event_ms=ts_ms + declaration.window_ms,
        written_ms=np.zeros(n, np.int64),
        seq=np.full(n, -1),
        pi=np.ones(n),
        labels=labels,
        weights=np.ones_like(labels),
        scores=np.full_like(labels, np.nan),
        values=values,
        line=np.arange(n),
        features={f.name: _python_column(features, f) for f in declaration.features},
    )


def batches(exposures: Iterable[Exposure], declaration: Declaration, size: int) -> Iterator[Batch]:
    """`from_exposures` of `size` exposures at a time (the last batch may be smaller)."""
    rest = iter(exposures)
    while chunk := list(islice(rest, size)):
        yield from_exposures(chunk, declaration)


def _parse(lines: Sequence[bytes], wanted: pa.Schema) -> tuple[pa.Table, NDArray[np.int64], list[tuple[int, str]]]:
    """Parses lines. Returns a table of those that fit the schema, their places, and (place, reason) of the others."""
    bad: list[tuple[int, str]] = []
    tables: list[pa.Table] = []
    good: list[int] = []

    def read(places: list[int]) -> None:
        try:
            table = _read([lines[k] for k in places], wanted)
        except (pa.ArrowInvalid, UnicodeDecodeError) as e:
            if len(places) == 1:
                bad.append((places[0], str(e)))
            else:
                # By halves: k bad lines among n cost about k log n small reads.
                middle = len(places) // 2
                read(places[:middle])
                read(places[middle:])
            return
        tables.append(table)
        good.extend(places)

    objects = []
    for place, line in enumerate(lines):
        # Arrow's reader crashes the process on a bare `null`, so it gets objects only.
        text = line.strip(b" \t\r\n")
        if text.startswith(b"{") and text.endswith(b"}"):
            objects.append(place)
        else:
            bad.append((place, "no JSON object" if text else "empty"))
    if objects:
        read(objects)
    table = pa.concat_tables(tables) if tables else wanted.empty_table()
    return table.combine_chunks(), np.array(good, np.int64), bad


def _read(lines: list[bytes], wanted: pa.Schema) -> pa.Table:
    # To JSON a line feed between the members of an object is white space. To Arrow it ends the line.
    text = b"\n".join(line.replace(b"\n", b" ") for line in lines)
    table = pj.read_json(
        io.BytesIO(text),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pj.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore"),
    )
    if table.num_rows != len(lines):
        raise pa.ArrowInvalid("more than one JSON value in a message")
    for name in ("kind", *_TEXTS):
        table[name].validate(full=True)  # the reader does not check that a string is UTF-8
    return table


def _judge(table: pa.Table, declaration: Declaration) -> dict[int, str]:
    """Row -> reason, for each row that is well-formed JSON but no example."""
    reasons: dict[int, str] = {}

    def refuse(mask: Any, reason: str) -> None:
        for row in np.flatnonzero(np.asarray(mask)):
            reasons.setdefault(int(row), reason)

    refuse(_numpy(table["v"], -1) != VERSION, f"v is not {VERSION}")
    refuse(~pc.is_in(table["kind"], pa.array(["positive", "negative"])).to_numpy(), "kind is not positive, negative")
    for name in _REQUIRED:
        refuse(table[name].is_null().to_numpy(), f"{name} is missing")
    for name in _TIMES:
        at_ms = _numpy(table[name], 0)
        refuse((at_ms < 0) | (at_ms > MAX_TIME_MS), f"{name} is out of range, allowed is 0 to {MAX_TIME_MS}")
    pi = _numpy(table["pi"], np.nan)
    refuse(~((pi > 0) & (pi <= 1)), "pi is not in (0, 1]")
    tasks = len(declaration.tasks)
    judged = _numpy(pc.list_value_length(table["labels"]), -1)
    refuse((judged < 1) | (judged > tasks), f"labels: not 1 to {tasks} numbers")
    for name in ("labels", "weights", "values"):
        length = _numpy(pc.list_value_length(table[name]), -1)
        refuse(length != judged, f"{name}: not as many numbers as labels")
        if name == "values":
            continue
        values, rows = _flat(table[name])
        outside = ~((values == 0) | (values == 1)) if name == "labels" else ~((values >= 0) & (values < _NUMBER_LIMIT))
        refuse(np.isin(np.arange(len(length)), rows[outside]), f"{name}: a value out of range")
    for task in declaration.values:
        place = declaration.tasks.index(task)
        label, value = (_per_task(table[name], tasks, np.nan)[:, place] for name in ("labels", "values"))
        refuse((label > 0) & ~((value >= 0) & (value < _NUMBER_LIMIT)), f"the value of {task} is not 0 or more")
    for f in declaration.features:
        column = pc.struct_field(table["features"], f.name)
        if f.kind == "number":
            refuse(~(np.abs(_numpy(column, 0.0)) < _NUMBER_LIMIT), f"feature {f.name} is not finite")
        elif f.kind == "id":
            refuse(np.isin(_numpy(column, 0), RESERVED_IDS), f"feature {f.name} is a reserved id")
        else:
            flat = pc.list_flatten(column)
            parents = np.asarray(_array(pc.list_parent_indices(column)))
            wrong = flat.is_null().to_numpy() | np.isin(_numpy(flat, 0), RESERVED_IDS)
            refuse(np.isin(np.arange(len(column)), parents[wrong]), f"feature {f.name} holds null or a reserved id")
    return reasons


def _columns(table: pa.Table, places: NDArray[np.int64], declaration: Declaration) -> Batch:
    n, tasks = table.num_rows, len(declaration.tasks)
    scores = [_numpy(pc.struct_field(table["scores"], task), np.nan) for task in declaration.tasks]
    integers: dict[str, Any] = {name: _numpy(table[name], 0) for name in _REQUIRED if name != "impression_id"}
    return Batch(
        impression_id=_array(table["impression_id"]),
        request_id=_array(pc.fill_null(table["request_id"], "")),
        lineage=_array(pc.fill_null(table["lineage"], "")),
        kind=np.where(_numpy(pc.equal(table["kind"], "positive"), False), "positive", "negative"),
        **integers,
        position=_numpy(table["position"], 0),
        seq=_numpy(table["seq"], -1),
        pi=_numpy(table["pi"], 1.0),
        labels=_per_task(table["labels"], tasks, 0).astype(np.float32),
        weights=_per_task(table["weights"], tasks, 0).astype(np.float32),
        scores=np.stack(scores, 1).astype(np.float32).reshape(n, tasks),
        values=_per_task(table["values"], tasks, np.nan),
        line=places,
        features={f.name: feature_column(pc.struct_field(table["features"], f.name), f) for f in declaration.features},
    )


def _per_task(column: Any, tasks: int, absent: float) -> NDArray[np.float64]:
    """float64[n, tasks]. A list from before the source grew is shorter: its last tasks are `absent`."""
    values, rows = _flat(column)
    if len(values) == len(column) * tasks:
        return values.reshape(-1, tasks)
    starts = np.cumsum(_numpy(pc.list_value_length(column), 0)) - _numpy(pc.list_value_length(column), 0)
    matrix = np.full((len(column), tasks), absent)
    matrix[rows, np.arange(len(values)) - starts[rows]] = values
    return matrix


def feature_column(column: Any, feature: Feature) -> FeatureColumn:
    """Converts an Arrow column (null: absent) to a Batch's."""
    if feature.kind == "id":
        return _numpy(column, feature.default)
    if feature.kind == "number":
        return _numpy(column, feature.default).astype(np.float32)
    if feature.default:
        filled = [feature.default if v is None else v for v in column.to_pylist()]
        column = pa.array(filled, pa.list_(pa.int64()))
    lengths = _numpy(pc.list_value_length(column), 0).astype(np.int64)
    values = np.asarray(_array(pc.list_flatten(column)), np.int64)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _python_column(rows: list[dict[str, Any]], feature: Feature) -> FeatureColumn:
    try:
        values = list(map(itemgetter(feature.name), rows))
    except KeyError:
        values = [row.get(feature.name, feature.default) for row in rows]
    if feature.kind == "id":
        return np.fromiter(values, np.int64, len(values))
    if feature.kind == "number":
        return np.array(values, np.float32)
    splits = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=splits[1:])
    return Ragged(np.fromiter(chain.from_iterable(values), np.int64, int(splits[-1])), splits)


def _take(column: FeatureColumn, rows: NDArray[np.int64]) -> FeatureColumn:
    if not isinstance(column, Ragged):
        return column[rows]
    starts, lengths = column.row_splits[:-1][rows], np.diff(column.row_splits)[rows]
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(splits[-1]) - np.repeat(splits[:-1], lengths)
    return Ragged(column.values[np.repeat(starts, lengths) + within], splits)


def _concat(columns: list[FeatureColumn]) -> FeatureColumn:
    if not isinstance(columns[0], Ragged):
        return np.concatenate(columns)
    ragged = [c for c in columns if isinstance(c, Ragged)]
    lengths = np.concatenate([np.diff(c.row_splits) for c in ragged])
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Ragged(np.concatenate([c.values for c in ragged]), splits)


def _array(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _numpy(column: Any, null: Any) -> NDArray[Any]:
    return np.asarray(_array(pc.fill_null(column, null)))


def _flat(column: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The numbers of a list column (null: NaN), and the row of each."""
    return _numpy(pc.list_flatten(column), np.nan), np.asarray(_array(pc.list_parent_indices(column)), np.int64)
