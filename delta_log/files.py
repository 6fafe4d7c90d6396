"""Reads and writes the Arrow files of a base or delta (docs/delta.md).

Rows and optimizer slots are in files of their own, so that serving reads only what it needs. A file names a table by
its place among the manifest's tables. Row i of a slots file belongs to row i of its rows file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from delta_log.manifest import LogBroken, Manifest, TableInfo, file_bytes

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
UInt32s = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]

_BATCH = 1 << 20
"""Rows of a record batch. The 32-bit offsets of a list column end at 2^31 floats, so dims up to 2048 fit."""

_FLOATS = pa.list_(pa.float32())
ROWS = pa.schema([("table", pa.uint16()), ("key", pa.int64()), ("row", _FLOATS)])
SLOTS = pa.schema([("table", pa.uint16()), ("tick", pa.uint32()), ("slots", _FLOATS)])
REMOVED = pa.schema([("table", pa.uint16()), ("key", pa.int64())])
LINE_BYTES = 64
ADMISSION = pa.schema([("table", pa.uint16()), ("line", pa.uint32()), ("bytes", pa.binary(LINE_BYTES))])
SERVED = pa.schema([("name", pa.string()), ("shape", pa.list_(pa.int64())), ("values", _FLOATS)])
DENSE = SERVED.append(pa.field("slots", _FLOATS))


class Filter(NamedTuple):
    """Lines of an admission filter: its shape ("": no filter), the lines' places uint32[n] and bytes uint8[n, 64]."""

    shape: str
    places: UInt32s
    lines: Bytes


NO_FILTER = Filter("", np.empty(0, np.uint32), np.empty((0, LINE_BYTES), np.uint8))


class TableRows(NamedTuple):
    """One table: keys int64[n], rows float32[n, dim], slots float32[n, slots], ticks uint32[n], removed int64[m]."""

    keys: Int64s
    rows: Float32s
    slots: Float32s
    ticks: UInt32s
    removed: Int64s
    admission: Filter = NO_FILTER


class Weight(NamedTuple):
    """A dense weight and the flat state of its optimizer."""

    value: Float32s
    slots: Float32s


def encode(
    tables: Mapping[str, TableRows], dense: Mapping[str, Weight], served: Mapping[str, Float32s], *, removed: bool
) -> dict[str, bytes]:
    """Encodes tables and dense weights: file name -> bytes. A delta has `removed` (removed.arrow), a base does not.

    An empty `served` has no file, and neither has a delta's empty `dense`.
    """
    rows, slots, removals, lines = [], [], [], []
    for place, t in enumerate(tables.values()):
        for at in range(0, len(t.keys), _BATCH):
            part = slice(at, at + _BATCH)
            table = np.full(len(t.keys[part]), place, np.uint16)
            rows.append([pa.array(table), pa.array(t.keys[part]), _lists(t.rows[part])])
            slots.append([pa.array(table), pa.array(t.ticks[part]), _lists(t.slots[part])])
        if len(t.removed):
            removals.append([pa.array(np.full(len(t.removed), place, np.uint16)), pa.array(t.removed)])
        if n := len(t.admission.places):
            data = pa.py_buffer(np.ascontiguousarray(t.admission.lines))
            column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(LINE_BYTES), n, [None, data])
            lines.append([pa.array(np.full(n, place, np.uint16)), pa.array(t.admission.places), column])
    files = {"rows-0.arrow": _file(ROWS, rows), "slots-0.arrow": _file(SLOTS, slots)}
    if removed:
        files["removed.arrow"] = _file(REMOVED, removals)
    files["admission.arrow"] = _file(ADMISSION, lines)
    if dense or not removed:
        slots_of = pa.array([w.slots.ravel() for w in dense.values()], _FLOATS)
        files["dense.arrow"] = _file(DENSE, [[*_values({n: w.value for n, w in dense.items()}), slots_of]])
    if served:
        files["served.arrow"] = _file(SERVED, [_values(served)])
    return files


def _values(weights: Mapping[str, Float32s]) -> list[pa.Array]:
    """The columns name, shape and values of dense weights."""
    shapes = pa.array([list(value.shape) for value in weights.values()], pa.list_(pa.int64()))
    return [pa.array(list(weights), pa.string()), shapes, pa.array([v.ravel() for v in weights.values()], _FLOATS)]


def read_rows(manifest: Manifest) -> dict[str, tuple[Int64s, Float32s]]:
    """Reads what serving needs, checked against the manifest: table -> (keys int64[n], rows float32[n, dim])."""
    return _read(manifest, "rows-", ROWS, {n: i.dim for n, i in manifest.tables.items()})


def read_slots(manifest: Manifest) -> dict[str, tuple[UInt32s, Float32s]]:
    """Reads the slots in the order of `read_rows`: table -> (ticks uint32[n], slots float32[n, slots])."""
    return _read(manifest, "slots-", SLOTS, {n: i.slots for n, i in manifest.tables.items()})


def read_removed(manifest: Manifest) -> dict[str, Int64s]:
    """Reads the removed keys: table -> int64[m]. A base has none."""
    if manifest.kind == "base":
        return {name: np.empty(0, np.int64) for name in manifest.tables}
    parts: dict[str, list[Int64s]] = {name: [] for name in manifest.tables}
    for name, batch in _batches(manifest, "removed.arrow", REMOVED):
        parts[name].append(batch.column(1).to_numpy())
    removed = {name: np.concatenate([np.empty(0, np.int64), *p]) for name, p in parts.items()}
    for name, info in manifest.tables.items():
        _count(manifest, "removed.arrow", name, len(removed[name]), info.removed)
    return removed


def read_admission(manifest: Manifest) -> dict[str, Filter]:
    """Reads the lines of the admission filters that this base or delta holds, by table."""
    file, filters = "admission.arrow", {n: NO_FILTER._replace(shape=i.admission) for n, i in manifest.tables.items()}
    for name, batch in _batches(manifest, file, ADMISSION):
        places, column = batch.column(1).to_numpy(), batch.column(2)
        lines = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * LINE_BYTES :][: len(places) * LINE_BYTES]
        if len(filters[name].places) or len(np.unique(places)) != len(places):
            raise LogBroken(f"{manifest.folder / file}: table {name}: a line of the admission filter is listed twice")
        filters[name] = Filter(filters[name].shape, places, lines.reshape(-1, LINE_BYTES))
    for name, info in manifest.tables.items():
        _count(manifest, file, name, len(filters[name].places), info.lines)
    return filters


def read_tables(manifest: Manifest) -> dict[str, TableRows]:
    """Reads everything of every table, for the trainer to restore from. No key may be in both rows and removed."""
    rows, slots, removed = read_rows(manifest), read_slots(manifest), read_removed(manifest)
    admission = read_admission(manifest)
    for name, keys in removed.items():
        both = np.intersect1d(keys, rows[name][0])
        if len(both):
            raise LogBroken(f"{manifest.folder}: table {name}: key {both[0]} is in rows and in removed")
    return {
        name: TableRows(keys, values, slots[name][1], slots[name][0], removed[name], admission[name])
        for name, (keys, values) in rows.items()
    }


def read_dense(manifest: Manifest) -> dict[str, Weight]:
    """Reads the dense weights of training with their slots, in the order of the model: name -> weight.

    It is empty for a delta in which they did not change.
    """
    columns = _dense_columns(manifest, "dense.arrow", DENSE)
    return {name: Weight(value, _floats(slots)) for name, value, slots in columns}


def read_served(manifest: Manifest) -> dict[str, Float32s]:
    """Reads the dense weights that are served from this base or delta on: name -> value. A delta may have none."""
    if "served.arrow" in manifest.files:
        return dict(_dense_columns(manifest, "served.arrow", SERVED))
    new = manifest.kind == "base" or manifest.dense_seq == manifest.seq
    return {name: weight.value for name, weight in read_dense(manifest).items()} if new else {}


def _dense_columns(manifest: Manifest, path: str, schema: pa.Schema) -> Iterator[tuple[Any, ...]]:
    """Yields name and value of each weight in a file, and the further columns. Only a delta may lack dense.arrow."""
    if path not in manifest.files:
        if manifest.kind == "base" or manifest.dense_seq == manifest.seq:
            raise LogBroken(f"{manifest.folder / path}: missing among {', '.join(manifest.files)}")
        return
    for batch in _open(manifest, path, file_bytes(manifest, path), schema):
        for name, shape, values, *others in zip(*batch.columns, strict=True):
            value, sizes = _floats(values), [int(n) for n in shape.as_py()]
            if value.size != int(np.prod(sizes)):
                raise LogBroken(f"{manifest.folder / path}: {name}: {value.size} values, expected shape {sizes}")
            yield name.as_py(), value.reshape(sizes), *others


def _floats(values: Any) -> Float32s:
    return np.array(values.values.to_numpy(), np.float32)


def _lists(values: Float32s) -> pa.ListArray:
    """Turns float32[n, k] into n lists of k, without a copy of the floats."""
    n, k = values.shape
    offsets = np.arange(n + 1, dtype=np.int32) * np.int32(k)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values, np.float32).ravel()))


def _file(schema: pa.Schema, batches: Sequence[Sequence[pa.Array]]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for columns in batches:
            writer.write_batch(pa.record_batch(list(columns), schema=schema))
    return bytes(sink.getvalue().to_pybytes())


def _open(manifest: Manifest, name: str, data: bytes, schema: pa.Schema) -> list[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(pa.py_buffer(data))
        if reader.schema != schema:
            raise LogBroken(f"{manifest.folder / name}: columns {reader.schema.names}, expected {schema.names}")
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except pa.ArrowInvalid as e:
        raise LogBroken(f"{manifest.folder / name}: not an Arrow file: {e}") from e


def _batches(manifest: Manifest, name: str, schema: pa.Schema) -> list[tuple[str, pa.RecordBatch]]:
    """Reads the record batches that hold rows, each with the name of its table; a batch has rows of one table."""
    names, batches = list(manifest.tables), []
    for batch in _open(manifest, name, file_bytes(manifest, name), schema):
        if batch.num_rows == 0:
            continue
        table = batch.column(0).to_numpy()
        if table[0] >= len(names) or np.any(table != table[0]):
            raise LogBroken(
                f"{manifest.folder / name}: table {sorted(set(table.tolist()))}, expected one place among {names}"
            )
        batches.append((names[int(table[0])], batch))
    return batches


def _read(
    manifest: Manifest, prefix: str, schema: pa.Schema, dims: Mapping[str, int]
) -> dict[str, tuple[npt.NDArray[Any], Float32s]]:
    """Reads the second column and the list column of every file that begins with `prefix`, by table."""
    parts: dict[str, list[tuple[npt.NDArray[Any], Float32s]]] = {name: [] for name in manifest.tables}
    shards = sum(f.startswith(prefix) for f in manifest.files)
    for file in (f"{prefix}{shard}.arrow" for shard in range(shards)):
        if file not in manifest.files:
            raise LogBroken(f"{manifest.folder / file}: missing among {', '.join(manifest.files)}")
        for name, batch in _batches(manifest, file, schema):
            lists, n = batch.column(2), batch.num_rows
            if np.any(np.diff(lists.offsets.to_numpy()) != dims[name]):
                raise LogBroken(f"{manifest.folder / file}: table {name}: a row is not {dims[name]} floats")
            parts[name].append((batch.column(1).to_numpy(), lists.flatten().to_numpy().reshape(n, dims[name])))
    columns = {}
    for name, info in manifest.tables.items():
        first = pa.array([], schema.field(1).type).to_numpy()  # its to_pandas_dtype needs pandas
        keys = np.concatenate([first, *(k for k, _ in parts[name])])
        columns[name] = keys, np.concatenate([np.empty((0, dims[name]), np.float32), *(v for _, v in parts[name])])
        _count(manifest, f"{prefix}*.arrow", name, len(keys), info.rows)
    return columns


def _count(manifest: Manifest, file: str, table: str, rows: int, expected: int) -> None:
    if rows != expected:
        raise LogBroken(f"{manifest.folder / file}: table {table}: {rows} rows, expected {expected}")


def infos(tables: Mapping[str, TableRows], totals: Mapping[str, int]) -> dict[str, TableInfo]:
    """Describes tables that are written, for their manifest."""
    return {
        name: TableInfo(
            dim=t.rows.shape[1],
            slots=t.slots.shape[1],
            rows=len(t.keys),
            removed=len(t.removed),
            total=totals[name],
            admission=t.admission.shape,
            lines=len(t.admission.places),
        )
        for name, t in tables.items()
    }
