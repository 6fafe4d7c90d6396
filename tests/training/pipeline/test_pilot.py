"""A model of its own as the pilot: it scores what is sampled as if it had served, and knows no label of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from common.interval import Interval
from delta_log.log import Log
from delta_log.manifest import read_manifest
from serving.client import inputs
from serving.export import state_at, write
from streaming.archive.archive import Archive
from tests.support import archived
from training.learn import batch_pass as batch
from training.models.model import make
from training.pipeline import sampling, warm_start
from training.pipeline.sampling import Sampling

INTERVAL = Interval(archived.BEGIN_MS, archived.BEGIN_MS + 2 * archived.MINUTE_MS)
AFTER = INTERVAL.after()
DECLARATION = archived.declared()
SCORE = f"score_{DECLARATION.judged}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive whose scores are those of the log's first lineage: it served. The second one learned INTERVAL."""
    path = tmp_path_factory.mktemp("pilot")
    assert batch.main(["--source", archived.SOURCE, "--log", str(path / "log")]) == 0
    archived.archive(path / "archive", 4, lambda day: {**day, "examples": as_served(day["examples"], base(path, 0))})
    begun = ["--log", path / "log", "--archive", path / "archive", "--begin", INTERVAL.begin_ms]
    assert warm_start.main(["train", "--source", archived.SOURCE, *map(str, [*begun, "--end", INTERVAL.end_ms])]) == 0
    return path


def base(folder: Path, lineage: int) -> Path:
    log = Log(folder / "log")
    return log.path / log.lineages()[lineage] / "base-000000000"


def as_served(table: pa.Table, of: Path) -> pa.Table:
    """The examples with the scores that TF Serving's graph of a base gives them."""
    model = write(
        make(read_manifest(of).model, DECLARATION), state_at(read_manifest(of), []), of.parents[2], frozen=True
    )
    names = [f.name for f in DECLARATION.features]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(table[f"feature_{n}"].to_pylist() for n in names),
                                                              strict=True)]  # fmt: skip
    tensors = {name: tf.constant(value) for name, value in inputs(rows, DECLARATION).items()}
    scores = tf.saved_model.load(str(model)).signatures["serving_default"](**tensors)
    for task in DECLARATION.tasks:
        place = table.schema.get_field_index(f"score_{task}")
        table = table.set_column(place, table.schema.field(place), pa.array(scores[task].numpy(), pa.float32()))
    return table


def sampled(
    capsys: pytest.CaptureFixture[str], folder: Path, to: Path, *more: object, when: Interval = AFTER
) -> dict[str, Any]:
    words = ["--source", archived.SOURCE, "--archive", folder / "archive", "--begin", when.begin_ms]
    capsys.readouterr()
    code = sampling.main([*map(str, [*words, "--end", when.end_ms, "--to", to, "--keep", 0.3, *more])])
    output = capsys.readouterr().out
    return {"code": code, **(json.loads(output) if output else {})}


def test_the_model_that_served_keeps_what_its_logged_scores_keep(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = sampled(capsys, folder, tmp_path)
    own = sampled(capsys, folder, tmp_path, "--pilot", base(folder, 0))
    log = Log(folder / "log")
    assert (served["pilot"], own["pilot"], own["code"]) == ("served", f"{log.lineages()[0]}.0", 0)
    assert served["sampling"] == own["sampling"] and served["file"] != own["file"]
    one, two = (pq.read_table(facts["file"]) for facts in (served, own))
    assert one.drop_columns(["pi"]).equals(two.drop_columns(["pi"]))
    # The served graph and the trainer's sum in another order: float32's last digits.
    assert two["pi"].to_numpy() == pytest.approx(one["pi"].to_numpy(), rel=1e-5)
    # A rerun, by the folder or by nothing but the same bytes.
    again = sampled(capsys, folder, tmp_path / "again", "--pilot", base(folder, 0))
    assert Path(again["file"]).read_bytes() == Path(own["file"]).read_bytes()
    assert hashlib.sha256(Path(own["file"]).read_bytes()).hexdigest() == own["sha256"]


def test_another_model_multiplies_pi_by_its_own_rate_and_what_is_kept_stands_for_what_was_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = sampled(capsys, folder, tmp_path, "--pilot", base(folder, 1))
    pi = dict(zip(*pq.read_table(facts["file"]).select(["offset", "pi"]).to_pydict().values(), strict=True))
    whole = as_served(Archive(folder / "archive").read("examples", AFTER.begin_ms, AFTER.end_ms), base(folder, 1))
    negative = np.array(whole["kind"].to_pylist()) == "negative"
    rate = sampling.rates(whole[SCORE].to_numpy().astype(np.float64), negative, Sampling(keep=0.3))
    stays = np.array([offset in pi for offset in whole["offset"].to_pylist()])
    assert list(pi.values()) == pytest.approx(list((whole["pi"].to_numpy() * rate)[stays]), rel=1e-5)
    assert stays[~negative].all() and rate.std() > 0.01
    # What calibration rests on: kept negatives, each for 1 / pi' of them, are as many as there were.
    error = np.sqrt(((1 - rate) / rate)[negative].sum())
    assert abs((1 / rate[stays & negative]).sum() - negative.sum()) < 4 * error


def test_a_model_that_knows_the_labels_and_one_that_is_not_there_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    newest = base(folder, 1)
    assert sampled(capsys, folder, tmp_path, "--pilot", newest, when=INTERVAL)["code"] == 2
    assert "and so knows their labels; allowed is a model whose data ends before the interval" in caplog.text
    assert sampled(capsys, folder, tmp_path, "--pilot", "champion")["code"] == 2
    assert "pilot is 'champion'; allowed are served, a base's folder, and with --log and --mlflow" in caplog.text
    assert sampled(capsys, folder, tmp_path, "--pilot", newest, "--method", "uniform")["code"] == 2
    assert "and method uniform; allowed is method pilot" in caplog.text
    assert not any(tmp_path.iterdir())


def test_tensorflow_is_not_imported_for_scores_that_were_logged(folder: Path, tmp_path: Path) -> None:
    code = "import sys; from training.pipeline.sampling import main as m; words = sys.argv[1:]; print(m(words),"
    code += " m([*words, '--method', 'uniform']), sorted(sys.modules))"
    words = ["--source", archived.SOURCE, "--archive", folder / "archive", "--to", tmp_path]
    times = ["--begin", str(AFTER.begin_ms), "--end", str(AFTER.end_ms)]
    command = [sys.executable, "-c", code, *map(str, words), *times]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert output.splitlines()[-1].startswith("0 0 [") and "'training.pipeline.pilot'" in output
    assert "'tensorflow'" not in output and "'mlflow'" not in output
