"""A pilot that is not the served model: its scores decide which negatives a sample keeps (`sampling --pilot`).

    base = find("champion", "simulator", Path("var/local/log"), "http://127.0.0.1:5000")
    scores = score(base, declaration, "simulator", table, topic_id)     # float64[n], of the judged task

The pilot must not have learned the examples that it scores. If it knows their labels, pi' depends on the labels, and a
model of the sample is not calibrated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta_log.log import Log
from delta_log.manifest import MANIFEST, LogError, Manifest, read_manifest
from streaming.archive.columns import from_table
from streaming.declaration import Declaration
from training.pipeline.positions import before
from training.record import registry

SERVED = "served"


def find(name: str, source: str, log: Path | None, mlflow: str) -> Manifest:
    """The base that `name` is: a base's folder, or an alias or number of the source's registered model.

    Raises ValueError or LogError.
    """
    folder = Path(name)
    if (folder / MANIFEST).is_file():
        return read_manifest(folder.resolve())
    if mlflow == "none" or log is None:
        allowed = f"{SERVED}, a base's folder, and with --log and --mlflow a model version's alias or number"
        raise ValueError(f"pilot is {name!r}; allowed are {allowed}")
    delta_log = Log(log)
    lineage = delta_log.serving()
    if lineage is None:
        raise LogError(f"{log}: no lineage serves yet, so there is no model version {name!r}")
    model = delta_log.manifest(lineage, "base", delta_log.seqs(lineage, "base")[-1]).model
    registered = registry.registered_model_of(source, model.name)
    tags = registry.version(registry.client_of(mlflow), registered, name)
    return delta_log.manifest(tags["lineage"], "base", int(tags["seq"]))


def score(base: Manifest, declaration: Declaration, source: str, table: Any, topic_id: str) -> NDArray[np.float64]:
    """The probability of the judged task that `base` gives to each of the archive's examples, of a topic's id.

    Raises ValueError if `base` has learned some of them.
    """
    if learned := already_learned(base, table, topic_id):
        raise ValueError(
            f"pilot {base.lineage}/{base.name} has learned {learned} of the interval's {table.num_rows} examples and so"
            " knows their labels; allowed is a model whose data ends before the interval"
        )
    from training.learn.state import score_with  # TensorFlow, which the logged scores do not need

    logits = score_with(base, from_table(table, declaration), declaration, source)
    judged = logits[:, declaration.tasks.index(declaration.judged)]
    # float32, as a served score is logged
    return np.asarray(1 / (1 + np.exp(-judged.astype(np.float64))), np.float32).astype(np.float64)


def already_learned(base: Manifest, table: Any, topic_id: str) -> int:
    """The number of examples before the positions up to which the base has learned."""
    if base.positions.get("topic_id") != topic_id:
        return 0
    return int(before(table, base.positions["offsets"]).sum())
