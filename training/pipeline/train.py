"""The step `train` of a warm start: examples of the archive, learned in one pass, begin a lineage."""

from __future__ import annotations

import hashlib
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common import process
from common.errors import Refused
from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from delta_log.writer import prune_lineages
from streaming.archive.archive import Archive
from streaming.archive.columns import filled, from_table, schemas
from streaming.archive.commits import by_time
from streaming.declaration import Declaration
from streaming.example import Batch
from streaming.source import load
from streaming.topics import EXAMPLES
from training.learn import batch_pass
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.models.model import DEFAULT
from training.models.model import load as load_model
from training.pipeline import candidates
from training.pipeline.positions import before
from training.record import registry

READ_AT_ONCE = 8192
"""Examples decoded at a time."""

log = process.logger("warm_start")


class Data(NamedTuple):
    """The examples that a lineage learns, in that order, and counts of the examples that it leaves out.

    `positions`: where the examples end in Kafka. `until_ms`: the event time until which they are complete. `behind`:
    examples at or after the positions, which the lineage learns online. `in_base`: examples that its base has learned.
    """

    table: pa.Table
    positions: dict[str, Any]
    behind: int
    in_base: int
    until_ms: int


def train(args: Namespace) -> dict[str, Any]:
    """Begins a lineage with the examples, or finds the lineage that began with them. Returns its record."""
    declaration, delta_log = load(args.source).declaration, Log(args.log)
    archive = Archive(args.archive, declaration)
    if args.examples:
        table = read_examples(args.examples, declaration)
    else:
        table = archive.read(EXAMPLES, args.begin, args.end)
    sha256 = sha256_of(table)
    record = candidates.that_serves(delta_log, sha256, declaration.sha256) if args.begin_from == "serving" else None
    if record is not None:
        log.info("%s serves, and began with the same data: there is nothing to do", record["lineage"])
    else:
        record = _begin(args, declaration, delta_log, table, archive.positions(EXAMPLES, args.end), sha256)
    if args.mlflow != "none":
        client = registry.client_of(args.mlflow)
        run = registry.run_of(client, args.source, record["lineage"])
        parameters = {k: record[k] for k in ("begin_ms", "end_ms", "rows", "pi", "from")}
        days = round((record["end_ms"] - record["begin_ms"]) / 86_400_000, 3)
        figures = {f"train_{name}": value for name, value in record["trained"].items()}
        registry.describe(client, run, {**parameters, "days": days}, {"data_sha256": record["data_sha256"]}, figures)
    return record


def _begin(
    args: Namespace, declaration: Declaration, delta_log: Log, table: pa.Table, positions: dict[str, Any], sha256: str
) -> dict[str, Any]:
    """The record of the lineage that the examples begin, or began before. Raises Refused if nothing is left to learn.

    `positions`: where the archive's interval ends in Kafka. `sha256`: of `table`.
    """
    base = base_to_begin_from(delta_log, table) if args.begin_from == "serving" else None
    data = select(table, positions, args.end, base)
    if not data.table.num_rows:
        raise Refused(
            f"nothing to learn: of {table.num_rows} examples the base has learned {data.in_base}, and {data.behind} lie"
            " behind the positions at which the data end: choose other days, or begin from none"
        )
    record: dict[str, Any] = {
        "declaration": declaration.sha256, "from": f"{base.lineage}/{base.name}" if base else "none",
        "begin_ms": args.begin, "end_ms": args.end, "rows": data.table.num_rows, "behind": data.behind,
        "known": data.in_base, "data_sha256": sha256_of(data.table), "given_sha256": sha256,
        "model": _model(args, delta_log), "pi": float(np.mean(data.table["pi"].to_numpy())),
        "positions": data.positions,
    }  # fmt: skip
    if earlier := candidates.begun_with(delta_log, record):
        log.info("%s learned the same data before: there is nothing to do", earlier["lineage"])
        return earlier
    prune_lineages(delta_log, args.keep_lineages)
    model = load_model(record["model"], declaration, args.seed)
    state = State(Learner(model, Settings(args.batch, args.seed)), args.source)
    if base is not None:
        state.restore(delta_log, base.lineage, base.seq)
    _learn(state, data)
    begun = batch_pass.begin(state, delta_log, data.positions)
    record |= {"lineage": begun.lineage, "trained": state.tested.figures(last=max(data.table.num_rows // 10, 1))}
    record["learned"] = begun.learned
    candidates.write(delta_log, begun.lineage, record)
    return record


def _model(args: Namespace, delta_log: Log) -> str:
    """The model to train: the command line's, else that of the served lineage, else the default."""
    lineage = delta_log.serving()
    if args.model or lineage is None:
        return args.model or DEFAULT
    return str(delta_log.manifest(lineage, "base", delta_log.seqs(lineage, "base")[-1]).model)


def _learn(state: State, data: Data) -> None:
    started = time.monotonic()
    state.counts_freshness = False

    def parts() -> Iterator[Batch]:
        for first in range(0, data.table.num_rows, READ_AT_ONCE):
            yield from_table(data.table.slice(first, READ_AT_ONCE), state.declaration)

    count = batch_pass.show(batch_pass.learn(state, parts()), "one pass")
    state.learned_until_ms = max(state.learned_until_ms, data.until_ms)
    log.info("%d examples learned, %d/s", count, count / (time.monotonic() - started))


def read_examples(paths: list[Path], declaration: Declaration) -> pa.Table:
    """One table, in event order, of the Parquet files and of all Parquet files in the folders among `paths`.

    Raises ValueError if there is no file, or if a file does not have an example's columns.
    """
    files = [f for p in paths for f in (sorted(p.rglob("*.parquet")) if p.is_dir() else [p])]
    if not files:
        raise ValueError(f"--examples {', '.join(map(str, paths))}: there is no .parquet file")
    schema = schemas(declaration)[EXAMPLES]
    parts = []
    for file in files:
        try:
            part = pq.read_table(file, use_threads=False, partitioning=None)
        except (OSError, pa.ArrowInvalid) as e:
            raise ValueError(f"--examples {file}: {e}") from e
        part = filled(part, EXAMPLES, declaration)
        if missing := [n for n in schema.names if n not in part.schema.names]:
            raise ValueError(f"--examples {file}: column {missing[0]} is missing (docs/archive.md)")
        parts.append(part.select(schema.names).cast(schema))
    return by_time(pa.concat_tables(parts), EXAMPLES)


def base_to_begin_from(delta_log: Log, table: pa.Table) -> Manifest:
    """The served lineage's newest base that has learned none of the examples, else its oldest base."""
    lineage = delta_log.serving()
    if lineage is None:
        raise LogError(f"{delta_log.path}: no lineage serves yet: use --from none")
    first: dict[int, int] = {}
    for row in table.group_by("partition").aggregate([("offset", "min")]).to_pylist():
        first[row["partition"]] = row["offset_min"]
    bases = [delta_log.manifest(lineage, "base", seq) for seq in delta_log.seqs(lineage, "base")]
    for base in reversed(bases):
        if all(int(o) <= first.get(int(p), int(o)) for p, o in base.positions.get("offsets", {}).items()):
            return base
    return bases[0]


def select(table: pa.Table, positions: dict[str, Any], end_ms: int, base: Manifest | None) -> Data:
    """Selects the examples before `positions` that `base` has not learned, in the order in which to learn them."""
    ends = {int(p): int(o) for p, o in positions["offsets"].items()}
    if strange := sorted(set(table["partition"].to_pylist()) - set(ends)):
        raise ValueError(f"examples are of partition {strange[0]}; the archive's positions are of {sorted(ends)}")
    starts: dict[str, int] = base.positions["offsets"] if base and base.positions else {}
    if starts and base and base.positions["topic_id"] != positions["topic_id"]:
        raise ValueError(f"{base.folder}: its positions are of another topic than the archive's: use --from none")
    behind, in_base = ~before(table, positions["offsets"]), before(table, starts)
    times = table["event_ms"].to_numpy()
    until_ms = int(times[behind].min()) - 1 if behind.any() else end_ms - 1
    offsets = {str(p): max(end, int(starts.get(str(p), 0))) for p, end in sorted(ends.items())}
    selected = ~behind & ~in_base
    order = pa.array(in_order(times[selected], until_ms))
    examples = table.filter(pa.array(selected)).take(order).combine_chunks()
    return Data(
        examples, {**positions, "offsets": offsets}, int(behind.sum()), int((in_base & ~behind).sum()), until_ms
    )


def in_order(event_ms: NDArray[np.int64], until_ms: int) -> NDArray[np.int64]:
    """The order in which to learn examples of int64[n] times: by time up to `until_ms`, the later ones spread evenly.

    The join writes a positive at once and a negative when its window is over. So the newest examples before a position
    in Kafka are positives whose negatives lie behind it. Learned last, they leave a base that scores too high.
    """
    when, late = event_ms.astype(np.float64), event_ms > until_ms
    when[late] = np.linspace(when.min(initial=until_ms), until_ms, int(late.sum()))
    return np.argsort(when, kind="stable")


def sha256_of(table: pa.Table) -> str:
    """The sha256 of the columns' values, whatever file they came from and however Arrow laid them out."""
    digest = hashlib.sha256()
    for name in table.schema.names:
        digest.update(name.encode())
        for part in _bytes_of(table[name].combine_chunks()):
            digest.update(part)
    return digest.hexdigest()


def _bytes_of(column: Any) -> Iterator[bytes]:
    """A column as bytes that depend on its values alone."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    if pa.types.is_list(column.type):
        yield from _bytes_of(pc.list_value_length(column))
        yield from _bytes_of(pc.list_flatten(column))
    elif pa.types.is_string(column.type):
        yield from _bytes_of(pc.binary_length(column))
        yield "".join(column.drop_null().to_pylist()).encode()
    else:
        yield column.is_null().to_numpy(zero_copy_only=False).tobytes()
        yield column.fill_null(0).to_numpy().tobytes()
