"""A lineage's base, with its deltas up to now or up to a seq, as a SavedModel that TensorFlow Serving serves.

    python -m serving.export --source simulator --log var/demo/log --lineage 000001-0a1b2c3d --to models/served

Writes <to>/<version>/ aside and renames it, so a model server that watches <to> never sees a part of it:
    assets/journal.bin                             empty: the model stands at its base
    assets/token                                   empty, and empty refuses every write until sync fills it
    assets.extra/tf_serving_warmup_requests        apply_file and one row, run before the version is AVAILABLE
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import tempfile
from pathlib import Path

from delta_log.changes import fold, no_changes, read_changes
from delta_log.files import Float32s

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # announces itself at each start

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from delta_log.log import Log
from delta_log.manifest import Manifest
from serving import journal
from serving.graph import Content, Served
from serving.journal import Journal
from streaming.declaration import INT64_MIN, Declaration
from streaming.source import load
from training.models.model import Model, make

log = logging.getLogger("serving.export")


def state_at(base: Manifest, deltas: list[Manifest]) -> Journal:
    """The whole state after the last of `deltas`, as a journal that begins at nothing."""
    first = last = read_changes(base)
    tables = first.tables
    for delta in deltas:
        last = read_changes(delta)
        tables = {name: fold(tables[name], new) for name, new in last.tables.items()}
    head = last.manifest
    return Journal(base.lineage, base.seq, head.seq, head.learned_until_ms, tables, last.dense)


def assign(model: Model, dense: dict[str, Float32s]) -> None:
    """Give the model the dense weights of a manifest; ValueError if they are not its own."""
    weights = {name: weight.variable for name, weight in model.dense.items()}
    if {n: tuple(w.shape) for n, w in weights.items()} != {n: v.shape for n, v in dense.items()}:
        raise ValueError(f"dense weights are {sorted(dense)}, the model has {sorted(weights)} (or their shapes differ)")
    for name, weight in weights.items():
        weight.assign(dense[name])


def warm_up(declaration: Declaration, name: str, *, frozen: bool) -> list[bytes]:
    """The records of tf_serving_warmup_requests: apply what the journal holds at that time, then score a row.

    The second one is there because a graph is optimised at its first call, which no user should wait for.
    """
    row = {
        "id": tf.zeros([1], tf.int64), "ids": tf.fill([1, 1], tf.constant(INT64_MIN, tf.int64)), "number": tf.zeros([1])
    }  # fmt: skip
    first = {f.name: tf.make_tensor_proto(row[f.kind]) for f in declaration.features}
    calls = {"serving_default": first} if frozen else {"apply_file": {}, "serving_default": first}
    records = []
    for signature, inputs in calls.items():
        request = predict_pb2.PredictRequest(inputs=inputs)
        request.model_spec.name, request.model_spec.signature_name = name, signature
        record = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
        records.append(bytes(record.SerializeToString()))
    return records


def write(
    model: Model, state: Journal, to: Path, *, frozen: bool = False, name: str = "ranker", head_room: float = 4.0
) -> Path:
    """Write <to>/<version>/ of `state`, served as `name`; the folder, also if it was there already."""
    final = to / str(journal.version_of(state.lineage, state.to))
    if final.is_dir():
        log.info("%s is there already", final)
        return final
    assign(model, state.dense)
    to.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".export-", dir=to))  # no number: a model server does not look at it
    try:
        assets = aside / "given"
        assets.mkdir()
        empty = {table: no_changes(dim) for table, dim in model.dims.items()}
        start = Journal(state.lineage, state.to, state.to, state.learned_until_ms, empty, state.dense)
        (assets / "journal.bin").write_bytes(journal.encode(start))
        (assets / "token").touch(0o600)
        tables = {table: (t.keys, t.rows) for table, t in state.tables.items()}
        content = Content(state.lineage, state.to, state.learned_until_ms, tables)
        served = Served(model, content, None if frozen else assets, head_room)
        tf.saved_model.save(served, str(aside / "model"), signatures=served.signatures())
        if not frozen:
            (aside / "model" / "assets" / "token").chmod(0o600)
        extra = aside / "model" / "assets.extra"
        extra.mkdir()
        with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as records:
            for record in warm_up(model.declaration, name, frozen=frozen):
                records.write(record)
        os.rename(aside / "model", final)
    finally:
        shutil.rmtree(aside)
    return final


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="whose declaration it has: kuairand, simulator, a module")
    parser.add_argument("--log", required=True, type=Path, help="the delta log's folder")
    parser.add_argument("--lineage", help="default: the one that is served")
    parser.add_argument("--seq", type=int, help="with the deltas up to this one (default: the newest base alone)")
    parser.add_argument("--frozen", action="store_true", help="without write signatures: the copy that stays as it is")
    parser.add_argument("--to", required=True, type=Path, help="the model's folder; <to>/<version>/ is written")
    parser.add_argument("--model", default="ranker", help="the name it is served under (default: %(default)s)")
    parser.add_argument("--head-room", type=float, default=4.0,
                        help="times its rows a table holds before it must grow (default: %(default)s)")  # fmt: skip
    a = parser.parse_args()
    for noisy in ("absl", "tensorflow"):  # a line for each renamed input of a captured table
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if a.head_room < 1:
        parser.error(f"--head-room is {a.head_room}, allowed is 1 or more")
    declaration, delta_log = load(a.source).declaration, Log(a.log)
    lineage = a.lineage or delta_log.serving()
    if lineage is None:
        parser.error(f"--lineage is not given, and {a.log} serves none yet")
    base = max((s for s in delta_log.seqs(lineage, "base") if a.seq is None or s <= a.seq), default=None)
    manifest, deltas = delta_log.chain(lineage, base)
    if manifest.declaration != declaration.sha256:
        parser.error(f"--source {a.source} has another declaration than {manifest.folder}, made of {manifest.source}")
    deltas = [d for d in deltas if a.seq is not None and d.seq <= a.seq]
    model = make(manifest.model, declaration)
    path = write(model, state_at(manifest, deltas), a.to, frozen=a.frozen, name=a.model, head_room=a.head_room)
    log.info("wrote %s: %s at seq %d", path, lineage, deltas[-1].seq if deltas else manifest.seq)


if __name__ == "__main__":
    main()
