"""The export under the TensorFlow of the newest stock tensorflow/serving image: one minor behind the trainer's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from delta_log.changes import fold, read_changes
from serving import journal
from serving.journal import Journal
from serving.signatures import input_name
from serving.sync import push
from tests.support import PROJECT
from tests.support.lineage import TOKEN, D, Lineage, request
from tests.support.rig import OPTIMISED

PREVIOUS = "2.20.0"
ENVIRONMENT = PROJECT / "build" / "tf220"
"""Kept between runs: it is 1.3 GB, and half a minute to make."""


def make(environment: Path) -> Path:
    """The environment's Python; made by uv where there is one, else by venv and pip."""
    python, stamp = environment / "bin" / "python", environment / "made"
    if stamp.exists() and stamp.read_text() == PREVIOUS:
        return python
    shutil.rmtree(environment, ignore_errors=True)
    environment.parent.mkdir(exist_ok=True)
    uv = shutil.which("uv") or next((str(p) for p in (PROJECT / "build").glob("*/bin/uv")), None)
    wanted = f"tensorflow-cpu=={PREVIOUS}"
    if uv:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(environment)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), wanted], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", wanted], check=True)
    stamp.write_text(PREVIOUS)
    return python


def recorded(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a version's warm-up."""
    calls = []
    for record in tf.data.TFRecordDataset(str(path / "assets.extra" / "tf_serving_warmup_requests")):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        arrays = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        texts = {name: value.astype(str) if value.dtype == object else value for name, value in arrays.items()}
        calls.append((request.model_spec.signature_name, texts))
    return calls


@pytest.mark.timeout(900)  # the first run downloads TensorFlow
def test_every_signature_runs_by_both_loaders(prepared: tuple[Path, Lineage], tmp_path: Path) -> None:
    folder, base = prepared
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "models" / "ranker" / "served" / "1000000000"
    (path / "assets" / "token").write_text(TOKEN)
    lineage = base.copy(tmp_path / "log")
    x = request(lineage)
    first, second = (read_changes(lineage.delta()) for _ in range(2))
    before, digest_before = lineage.scores(x), lineage.digest()
    tables = {n: fold(first.tables[n], new) for n, new in second.tables.items()}
    # The journal goes from the base to 2: what the warm-up finds when the version is loaded.
    whole = Journal(lineage.name, 0, 2, second.manifest.learned_until_ms, tables, second.dense, 2)
    third = read_changes(lineage.delta())
    (path / "assets" / "journal.bin").write_bytes(journal.encode(whole))

    dense = {input_name(n): v for n, v in third.dense.items()}
    who = {"lineage": lineage.name, "seq": np.int64(3), "token": TOKEN}
    rows = next(push.chunks(third.tables))
    delta = who | {"chunk": np.int64(0), "chunks": np.int64(1), "learned_until_ms": np.int64(3000)} | rows
    delta["dense_seq"] = np.int64(3)
    warm_up, unused = recorded(path), {"unused": np.int64(0)}
    calls: list[tuple[str, dict[str, Any]]] = [
        *warm_up, ("serving_default", x), ("status", unused), ("digest", unused), ("apply_dense", who | dense),
        ("apply_delta", delta), ("status", unused), ("digest", unused), ("serving_default", x), ("apply_file", unused),
    ]  # fmt: skip
    arrays = {f"{i} {s}|{n}": np.asarray(v) for i, (s, inputs) in enumerate(calls) for n, v in inputs.items()}
    np.savez(tmp_path / "calls.npz", **arrays)  # type: ignore[arg-type]
    lineage.writer.close()

    python = make(ENVIRONMENT)
    script = Path(__file__).with_name("previous_tf.py")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [str(python), str(script), str(path), str(tmp_path / "calls.npz")], capture_output=True, text=True, env=clean
    )
    assert run.returncode == 0, run.stderr[-3000:]
    answers = json.loads(run.stdout.splitlines()[-1])
    assert answers["tf"] == PREVIOUS
    for loader in ("object", "session"):
        warmed, made = answers[loader][: len(warm_up)], answers[loader][len(warm_up) :]
        scored, status, digest, densed, applied, status_after, digest_after, scored_after, filed = made
        assert warmed[-1] == {"seq": 2}
        assert (status["lineage"], status["seq"]) == (lineage.name, 2) and digest == digest_before
        assert (densed["dense_seq"], applied["seq"], filed["seq"]) == (3, 3, 3)
        assert (status_after["seq"], status_after["learned_until_ms"]) == (3, 3000)
        assert digest_after == lineage.digest()
        after = lineage.scores(x)
        for task in D.tasks:
            np.testing.assert_allclose(scored[task], before[task], atol=1e-6)
            np.testing.assert_allclose(scored_after[task], after[task], atol=1e-6)
    # A graph is optimised when it runs for the first time: all have done so in the warm-up.
    session = run.stderr.partition("session, call")[2].split("session, call")
    optimised = [OPTIMISED in log for log in session]
    assert optimised == [True] * len(warm_up) + [False] * len(made), session[len(warm_up) :]
