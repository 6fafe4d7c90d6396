"""Exports a lineage's base, or its state at a seq, as a SavedModel that TensorFlow Serving serves.

    python -m serving.export --source simulator --log var/demo/log --lineage 000001-0a1b2c3d --to models/served

The folder <to>/<version>/ appears complete, for a model server that watches <to>. Beside the model it has:
    assets/journal.bin                             empty: the model is at its base
    assets/token                                   empty: the model refuses every write until sync fills it
    assets.extra/tf_serving_warmup_requests        every signature once, before the version is AVAILABLE
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from common import process
from common.disk import made_once
from common.errors import InputError
from delta_log.changes import fold, no_changes, read_changes
from delta_log.files import Float32s

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it logs a notice at each start

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from delta_log.log import Log
from delta_log.manifest import Manifest
from serving import journal
from serving.graph import Content, Served
from serving.journal import Journal
from serving.signatures import NO_OP, RANKER, WRITES
from streaming.source import load
from training.models.model import Model, make

log = process.logger("serving.export")

WARM_UP_ROWS = 2
"""Matrices of one row are multiplied by other code. What multiplies larger ones is made at its first call (25 ms)."""


def state_at(base: Manifest, deltas: list[Manifest]) -> Journal:
    """The whole state after the last of `deltas`, as a journal that begins with nothing."""
    last = read_changes(base)
    tables, dense = last.tables, last.dense
    for delta in deltas:
        last = read_changes(delta)
        tables = {name: fold(tables[name], changes) for name, changes in last.tables.items()}
        dense = last.dense or dense
    head = last.manifest
    return Journal(base.lineage, base.seq, head.seq, head.learned_until_ms, tables, dense, head.dense_seq)


def assign(model: Model, dense: dict[str, Float32s]) -> None:
    """Gives the model the dense weights of a manifest; ValueError if the model has others."""
    weights = {name: weight.variable for name, weight in model.dense.items()}
    if {n: tuple(w.shape) for n, w in weights.items()} != {n: v.shape for n, v in dense.items()}:
        raise ValueError(f"dense weights are {sorted(dense)}, the model has {sorted(weights)} (or their shapes differ)")
    for name, weight in weights.items():
        weight.assign(dense[name])


def warm_up(signatures: Mapping[str, Mapping[str, tf.TensorSpec]], name: str) -> list[bytes]:
    """The records of tf_serving_warmup_requests: each signature once. A version that refuses one does not load.

    TensorFlow optimises a graph at its first call. A record makes that call, so that no user waits for it. The journal
    comes last, so that the version is AVAILABLE right after it has read the newest delta.
    """
    records = []
    for signature in sorted(signatures, key=lambda signature: signature == "apply_file"):
        rows = 0 if signature in WRITES else WARM_UP_ROWS
        inputs = {
            n: tf.zeros([rows if d is None else d for d in s.shape], s.dtype) for n, s in signatures[signature].items()
        }
        if signature in ("apply_dense", "apply_delta"):
            inputs["seq"] = tf.constant(NO_OP, tf.int64)
        request = predict_pb2.PredictRequest(inputs={n: tf.make_tensor_proto(value) for n, value in inputs.items()})
        request.model_spec.name, request.model_spec.signature_name = name, signature
        record = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
        records.append(bytes(record.SerializeToString()))
    return records


def write(
    model: Model, state: Journal, to: Path, *, frozen: bool = False, name: str = RANKER, head_room: float = 4.0
) -> Path:
    """Writes `state`, which is served as `name`, to <to>/<version>. Returns that folder, also if it existed already."""
    final = to / str(journal.version_of(state.lineage, state.to))
    if final.is_dir():
        log.info("%s exists already", final)
        return final
    assign(model, state.dense)
    with made_once(final) as aside, TemporaryDirectory() as folder:
        assets = Path(folder)
        empty = {table: no_changes(dim) for table, dim in model.dims.items()}
        start = state._replace(start=state.to, tables=empty)
        (assets / "journal.bin").write_bytes(journal.encode(start))
        (assets / "token").touch()
        tables = {table: (t.keys, t.rows) for table, t in state.tables.items()}
        content = Content(state.lineage, state.to, state.learned_until_ms, tables, state.dense_seq)
        served = Served(model, content, None if frozen else assets, head_room)
        tf.saved_model.save(served, str(aside), signatures=served.signatures())
        if not frozen:
            (aside / "assets" / "token").chmod(0o600)
        (aside / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(aside / "assets.extra" / "tf_serving_warmup_requests")) as records:
            for record in warm_up(served.inputs(), name):
                records.write(record)
    return final


def export(args: argparse.Namespace) -> None:
    """Writes the version that the command asks for."""
    declaration, delta_log = load(args.source).declaration, Log(args.log)
    lineage = args.lineage or delta_log.serving()
    if lineage is None:
        raise InputError(f"--lineage is missing, and {args.log} serves no lineage yet")
    seq = sys.maxsize if args.seq is None else args.seq
    base = max((s for s in delta_log.seqs(lineage, "base") if s <= seq), default=None)
    manifest, deltas = delta_log.chain(lineage, base)
    if manifest.declaration != declaration.sha256:
        raise InputError(f"--source {args.source} differs from the declaration of {manifest.folder}: {manifest.source}")
    state = state_at(manifest, [] if args.seq is None else [delta for delta in deltas if delta.seq <= seq])
    model = make(manifest.model, declaration)
    path = write(model, state, args.to, frozen=args.frozen, name=args.model, head_room=args.head_room)
    log.info("wrote %s: %s at seq %d", path, lineage, state.to)


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("serving.export", __doc__)
    parser.shared("source", "log")
    parser.add_argument("--lineage", help="default: the one that is served")
    parser.add_argument("--seq", type=int, help="with the deltas up to this one (default: the newest base alone)")
    parser.add_argument("--frozen", action="store_true", help="without write signatures: a copy that never changes")
    parser.add_argument("--to", required=True, type=Path, help="the model's folder; <to>/<version>/ is written")
    parser.add_argument("--model", default=RANKER, help="the name that it is served under (default: %(default)s)")
    parser.add_argument("--head-room", type=process.at_least(1.0), default=4.0, metavar="TIMES",
                        help="a table grows beyond this times its rows (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    return process.run(lambda: export(args))


if __name__ == "__main__":
    sys.exit(main())
