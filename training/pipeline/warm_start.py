"""A warm start: days of the archive learned in one pass begin a new lineage, which is judged and then takes over.

    python -m training.pipeline.warm_start train    --source S --log L --archive A --begin MS --end MS
    python -m training.pipeline.warm_start evaluate --source S --log L --archive A --begin MS --end MS --lineage X
    python -m training.pipeline.warm_start promote  --source S --log L --lineage X --kafka H:P

`train` begins the lineage: its base names the positions where its data ends. `evaluate` judges that base on a later
interval beside the scores that were served. `promote` asks the gate, learns from those positions to the topic's head
while the old lineage serves, then moves SERVING: trainer and syncs follow (docs/warm-start.md). Each prints one JSON
object; exit 2: something was wrong or missing; 3: the gate refused, or there was nothing to learn. Times are ms of
event time, begin <= t < end. Run again, each finds what it did before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from delta_log.writer import prune_lineages
from streaming.archive.archive import Archive, NotArchived
from streaming.archive.columns import from_table, schemas
from streaming.archive.commits import ArchiveError, by_time
from streaming.declaration import Declaration
from streaming.example import Batch
from streaming.source import load
from streaming.topics import EXAMPLES
from training.learn import batch_pass as history
from training.learn.learner import Learner, Settings
from training.learn.state import State, score_with
from training.models.model import DEFAULT
from training.models.model import load as load_model
from training.pipeline import candidates, evaluation
from training.pipeline.evaluation import Gate
from training.record import registry

READ_AT_ONCE = 8192
"""Examples decoded at a time."""

INSTEAD = (
    "What serves stays; learn from more (days, or a longer interval), judge on more (judge_end), or set tolerance or"
    " calibration"
)

log = logging.getLogger("warm_start")


class Refused(RuntimeError):
    """The gate refuses, or there is nothing to learn; the message says why, what is allowed, and what can be done."""


class Data(NamedTuple):
    """What a lineage learns: the examples in the order it does, where in Kafka they end, and how many of those given
    belong to others: `behind` stand past the positions (they are learned online), `known` are in the base before."""

    table: pa.Table
    positions: dict[str, Any]
    behind: int
    known: int
    until_ms: int


def sha256_of(table: pa.Table) -> str:
    """Of the columns' values, whatever file they came from and however Arrow laid them out."""
    digest = hashlib.sha256()
    for name in table.schema.names:
        digest.update(name.encode())
        for part in _bytes_of(table[name].combine_chunks()):
            digest.update(part)
    return digest.hexdigest()


def _bytes_of(column: Any) -> Iterator[bytes]:
    """A column as bytes that only depend on its values."""
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


def read_examples(paths: list[Path], declaration: Declaration) -> pa.Table:
    """The Parquet files, and all in the folders, as one table in event order; ValueError names what is wrong."""
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
        if missing := [n for n in schema.names if n not in part.schema.names]:
            raise ValueError(f"--examples {file}: column {missing[0]} is missing (docs/archive.md)")
        parts.append(part.select(schema.names).cast(schema))
    return by_time(pa.concat_tables(parts), EXAMPLES)


def in_order(event_ms: NDArray[np.int64], until_ms: int) -> NDArray[np.int64]:
    """The order to learn in, of examples at int64[n] times: by time up to `until_ms`; those after it, whose negatives
    partly stand behind the positions, one by one between the others.

    The join writes a positive at once and a negative when its window is over, so a cut in Kafka has positives without
    their negatives. Learned last they would leave a base that scores too high.
    """
    when, tail = event_ms.astype(np.float64), event_ms > until_ms
    when[tail] = np.linspace(when.min(initial=until_ms), until_ms, int(tail.sum()))
    return np.argsort(when, kind="stable")


def chosen(table: pa.Table, positions: dict[str, Any], end_ms: int, base: Manifest | None) -> Data:
    """Of the examples those before `positions`, and not in `base`: what is behind is learned online, once."""
    partition, offset = table["partition"].to_numpy(), table["offset"].to_numpy()
    ends = {int(p): int(o) for p, o in positions["offsets"].items()}
    if strange := sorted(set(partition.tolist()) - set(ends)):
        raise ValueError(f"examples of partition {strange[0]}, the archive's positions are of {sorted(ends)}")
    starts = {int(p): int(o) for p, o in base.positions["offsets"].items()} if base and base.positions else {}
    if starts and base and base.positions["topic_id"] != positions["topic_id"]:
        raise ValueError(f"{base.folder}: its positions are of another topic than the archive's: --from none")
    behind = offset >= np.array([ends[p] for p in partition.tolist()], np.int64)
    known = offset < np.array([starts.get(p, 0) for p in partition.tolist()], np.int64)
    times = table["event_ms"].to_numpy()
    until = int(times[behind].min()) - 1 if behind.any() else end_ms - 1
    offsets = {str(p): max(end, starts.get(p, 0)) for p, end in sorted(ends.items())}
    mine = ~behind & ~known
    rest = table.filter(pa.array(mine)).take(pa.array(in_order(times[mine], until))).combine_chunks()
    return Data(rest, {**positions, "offsets": offsets}, int(behind.sum()), int((known & ~behind).sum()), until)


def base_to_begin_from(delta_log: Log, table: pa.Table) -> Manifest:
    """Of the served lineage's bases the newest that has learned none of the examples; otherwise the oldest kept."""
    lineage = delta_log.serving()
    if lineage is None:
        raise LogError(f"{delta_log.path}: serves no lineage yet: --from none")
    first: dict[int, int] = {}
    for row in table.group_by("partition").aggregate([("offset", "min")]).to_pylist():
        first[row["partition"]] = row["offset_min"]
    bases = [delta_log.manifest(lineage, "base", seq) for seq in delta_log.seqs(lineage, "base")]
    for base in reversed(bases):
        if all(int(o) <= first.get(int(p), int(o)) for p, o in base.positions.get("offsets", {}).items()):
            return base
    return bases[0]


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Begin the lineage, or find the one that the same data began before."""
    declaration, delta_log, archive = load(args.source).declaration, Log(args.log), Archive(args.archive)
    if args.examples:
        table = read_examples(args.examples, declaration)
    else:
        table = archive.read(EXAMPLES, args.begin, args.end)
    given = sha256_of(table)
    known = candidates.that_serves(delta_log, given, declaration.sha256) if args.begin_from == "serving" else None
    if known is not None:
        log.info("%s serves, and began with the same data: nothing is done again", known["lineage"])
    else:
        known = _begin(args, declaration, delta_log, table, archive.positions(EXAMPLES, args.end), given)
    if args.mlflow != "none":
        client = registry.client_of(args.mlflow)
        run = registry.run_of(client, args.source, known["lineage"])
        parameters = {k: known[k] for k in ("begin_ms", "end_ms", "rows", "pi", "from")}
        days = round((known["end_ms"] - known["begin_ms"]) / 86_400_000, 3)
        figures = {f"train_{name}": value for name, value in known["trained"].items()}
        registry.describe(client, run, {**parameters, "days": days}, {"data_sha256": known["data_sha256"]}, figures)
    return known


def _begin(
    args: argparse.Namespace,
    declaration: Declaration,
    delta_log: Log,
    table: pa.Table,
    positions: dict[str, Any],
    given: str,
) -> dict[str, Any]:
    """What is known of the lineage that the examples begin, or began before; Refused if none is left to learn."""
    base = base_to_begin_from(delta_log, table) if args.begin_from == "serving" else None
    data = chosen(table, positions, args.end, base)
    if not data.table.num_rows:
        raise Refused(f"nothing to learn: of {table.num_rows} examples {data.known} are in the base already and"
                      f" {data.behind} stand behind the positions: choose other days, or begin from none")  # fmt: skip
    begun_from = f"{base.lineage}/{base.name}" if base else "none"
    known: dict[str, Any] = {
        "declaration": declaration.sha256, "from": begun_from, "begin_ms": args.begin, "end_ms": args.end,
        "rows": data.table.num_rows, "behind": data.behind, "known": data.known, "data_sha256": sha256_of(data.table),
        "given_sha256": given, "model": _model(args, delta_log), "pi": float(np.mean(data.table["pi"].to_numpy())),
        "positions": data.positions,
    }  # fmt: skip
    lineage = candidates.begun_with(delta_log, known)
    if lineage is not None:
        log.info("%s learned the same data before: nothing is done again", lineage)
        return candidates.read(delta_log, lineage)
    prune_lineages(delta_log, args.keep_lineages)
    state = _learned(args, declaration, delta_log, base, data)
    begun = history.begin(state, delta_log, data.positions)
    known |= {"lineage": begun.lineage, "trained": state.tested.figures(last=max(data.table.num_rows // 10, 1))}
    known["learned"] = begun.learned
    candidates.write(delta_log, begun.lineage, known)
    return known


def _model(args: argparse.Namespace, delta_log: Log) -> str:
    """The model to train: of the command line, else of the lineage that is served, else the default one."""
    lineage = delta_log.serving()
    if args.model or lineage is None:
        return args.model or DEFAULT
    return str(delta_log.manifest(lineage, "base", delta_log.seqs(lineage, "base")[-1]).model)


def _learned(
    args: argparse.Namespace, declaration: Declaration, delta_log: Log, base: Manifest | None, data: Data
) -> State:
    started = time.monotonic()
    model = load_model(_model(args, delta_log), declaration, args.seed)
    state = State(Learner(model, Settings(args.batch, args.seed)), args.source)
    if base is not None:
        state.restore(delta_log, base.lineage, base.seq)
    state.counts_freshness = False

    def parts() -> Iterator[Batch]:
        for at in range(0, data.table.num_rows, READ_AT_ONCE):
            yield from_table(data.table.slice(at, READ_AT_ONCE), declaration)

    done = history.show(history.learn(state, parts()), "one pass")
    state.learned_until_ms = max(state.learned_until_ms, data.until_ms)
    log.info("%d examples learned, %d/s", done, done / (time.monotonic() - started))
    return state


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """The lineage's first base on an interval it has not learned, beside the scores as served."""
    declaration, delta_log = load(args.source).declaration, Log(args.log)
    known = candidates.read(delta_log, args.lineage)
    if args.begin < known["end_ms"]:
        raise ValueError(
            f"--begin is {args.begin}, allowed is {known['end_ms']} or later: the lineage learned until it"
        )
    report = known.get("evaluation", {})
    if (report.get("begin_ms"), report.get("end_ms"), report.get("seed")) == (args.begin, args.end, args.seed):
        log.info("%s was judged on the same interval before: nothing is done again", args.lineage)
    else:
        batch = from_table(Archive(args.archive).read(EXAMPLES, args.begin, args.end), declaration)
        logits = score_with(delta_log.manifest(args.lineage, "base", 0), batch, declaration, args.source)
        report = {"begin_ms": args.begin, "end_ms": args.end, "seed": args.seed}
        report |= evaluation.evaluate(batch, logits, declaration, args.seed)
        candidates.write(delta_log, args.lineage, {**known, "evaluation": report})
    if args.mlflow != "none":
        client = registry.client_of(args.mlflow)
        run = registry.run_of(client, args.source, args.lineage)
        figures = {f"eval_{who}_{name}": report[who][name] for who in ("candidate", "served")
                   for name in ("auc", "loss", "calibration")}  # fmt: skip
        figures |= {f"eval_{name}": report[name] for name in ("difference", "low", "high", "examples")}
        said = {name: value for name, value in figures.items() if value is not None}
        registry.describe(client, run, {"eval_begin_ms": args.begin, "eval_end_ms": args.end}, {}, said)
        about = {"data_sha256": known["data_sha256"], "from": known["from"], **said}
        base = delta_log.manifest(args.lineage, "base", delta_log.seqs(args.lineage, "base")[0])
        report["version"] = registry.register(client, args.source, run, base, registry.CANDIDATE, about)
    return {"lineage": args.lineage, **report}


def promote(args: argparse.Namespace) -> dict[str, Any]:
    """The gate; then the lineage learns to the head, and is served. Any lineage, without the gate, with `--force`."""
    from training.learn import online  # Kafka, which the other steps do without

    delta_log = Log(args.log)
    gate = Gate(args.tolerance, args.calibration, args.least_examples)
    before = delta_log.serving()
    if not args.force:
        report = candidates.read(delta_log, args.lineage).get("evaluation")
        if report is None:
            raise ValueError(
                f"{args.lineage} is not evaluated: python -m training.pipeline.warm_start evaluate comes first"
            )
        if refusals := gate.refusals(report):
            raise Refused(f"{args.lineage} is not promoted: {'; '.join(refusals)}. {INSTEAD}")
    if before != args.lineage:
        more = ["--lineage", args.lineage, "--until-head", "--mlflow", args.mlflow, "--keep-lineages", "1000000"]
        code = online.main(["--source", args.source, "--log", str(args.log), "--kafka", args.kafka, *more])
        if code != 0:
            raise LogError(f"{args.lineage} did not reach the head of the topic; {before} serves on")
        delta_log.serve(args.lineage)
        log.info("%s is served, before it was %s", args.lineage, before)
    base_seq = delta_log.seqs(args.lineage, "base")[0]
    result = {"lineage": args.lineage, "before": before, "gate": "forced" if args.force else gate.settings()}
    if args.mlflow != "none":
        client = registry.client_of(args.mlflow)
        base = delta_log.manifest(args.lineage, "base", base_seq)
        run = registry.run_of(client, args.source, args.lineage)
        result["version"] = registry.register(client, args.source, run, base, registry.CHAMPION)
    return result


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # each retry; what it comes to is said once
    for mine in (log, history.log):
        mine.setLevel(logging.INFO)
    try:
        registry.require_mlflow(args.mlflow)  # before hours of training
        # A person who goes back by force does not wait for what is being learned.
        alone = nullcontext() if getattr(args, "force", False) else candidates.one_at_a_time(Log(args.log))
        with alone:
            result = {"train": train, "evaluate": evaluate, "promote": promote}[args.step](args)
    except Refused as e:
        log.error("%s", e)
        return 3
    except (ValueError, LogError, NotArchived, ArchiveError) as e:
        log.error("%s", e)
        return 2
    except KeyboardInterrupt:
        return 1
    except Exception as e:
        if type(e).__name__ != "MlflowException":
            raise
        log.error("mlflow %s: %s; what was done stays, run it again", args.mlflow, str(e).splitlines()[0])
        return 2
    print(json.dumps(result), flush=True)
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "training.pipeline.warm_start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--source", required=True, help="kuairand, simulator?seed=7, a module, or a path to a .py file")
    common.add_argument("--log", required=True, type=Path, metavar="DIR", help="the delta log's folder")
    common.add_argument("--mlflow", default="none", metavar="URL", help="where the record is kept (default: none)")
    days = argparse.ArgumentParser(add_help=False)
    days.add_argument("--archive", required=True, type=Path, metavar="DIR", help="the archive's folder")
    days.add_argument("--begin", required=True, type=int, metavar="MS", help="event time of the first example")
    days.add_argument("--end", required=True, type=int, metavar="MS", help="event time after the last one")
    days.add_argument("--batch", type=int, default=Settings.batch, help="examples a step (default: %(default)s)")
    days.add_argument("--seed", type=int, default=0, help="of weights and bootstrap (default: %(default)s)")
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--lineage", required=True, help="the candidate, as `train` named it")

    begin = steps.add_parser("train", parents=[common, days], help="learn the days, begin a lineage")
    begin.add_argument("--examples", type=Path, action="append", metavar="PARQUET",
                       help="a file or folder of examples of the interval, sampled from the archive (default: all of"
                       " the archive's); may be repeated")  # fmt: skip
    begin.add_argument("--from", dest="begin_from", choices=("none", "serving"), default="none",
                       help="untrained, or the served lineage's base (default: %(default)s)")  # fmt: skip
    begin.add_argument(
        "--model",
        default="",
        help="a module of training/models and its settings, as in deepfm?dim=8 (default: that of the lineage served)",
    )
    begin.add_argument("--keep-lineages", type=int, default=5, metavar="N", help="old ones kept (default: 5)")
    steps.add_parser("evaluate", parents=[common, days, which], help="judge it on a later interval")
    take = steps.add_parser("promote", parents=[common, which], help="ask the gate, learn to the head, serve it")
    take.add_argument("--kafka", required=True, metavar="H:P", help="the broker's address")
    take.add_argument("--force", action="store_true", help="without the gate: any lineage, also an older one")
    for name, value in Gate().settings().items():
        take.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, metavar="X",
                          help="of the gate (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.step == "promote" and args.calibration < 1:
        parser.error(f"--calibration is {args.calibration:g}, allowed is 1 or more")
    if args.step != "promote" and args.end <= args.begin:
        parser.error(f"--end is {args.end}, allowed is later than --begin, {args.begin}")
    return args


if __name__ == "__main__":
    sys.exit(main())
