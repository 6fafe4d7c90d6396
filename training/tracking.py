"""The record in MLflow, off the path of deltas: an outage of it delays nothing and loses only what it would show.

A lineage is a run (tag `lineage`), which a restarted trainer goes on with. Each delta is a step; the index of manifests
is the run's artifact `manifests.json`; each base is a version of the registered model `minutehand-<source>`, whose
source is a small pointer artifact (lineage, seq, sha256): rows never travel through MLflow. The alias `trained` is at
the newest base.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import tempfile
import threading
from pathlib import Path
from typing import Any

from training.delta import Log, LogError, Manifest

EVERY_S = 3.0
"""Between two batches: one log_batch of 100 metrics takes 0.1 s on MLflow's SQLite, one metric nearly as long."""
MOST_METRICS = 1000  # of one log_batch, MLflow's own limit
ALIAS = "trained"

log = logging.getLogger("tracking")


class Tracking:
    """Sends what it is told from a thread of its own; `with` ends it with a last attempt. `url` "none" does nothing."""

    def __init__(self, url: str, delta_log: Log, lineage: str, source: str) -> None:
        self._url, self._log, self._lineage = url, delta_log, lineage
        self._source = re.sub(r"\W+", "-", source.partition("?")[0]).strip("-")
        self._told: queue.SimpleQueue[Manifest] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._run_id = ""
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)
        if url != "none":
            # A server that is away must not hold the end of the process.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            self._thread.start()

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def delta(self, manifest: Manifest) -> None:
        """A step."""
        self._tell(manifest)

    def base(self, manifest: Manifest) -> None:
        """A model version, unless it is one already."""
        self._tell(manifest)

    def _tell(self, manifest: Manifest) -> None:
        if self._url != "none":
            self._told.put(manifest)

    def _loop(self) -> None:
        from mlflow import MlflowClient  # seven seconds of import, not the trainer's

        client, waiting, away = MlflowClient(self._url), [], False
        while True:
            ending = self._ending.wait(EVERY_S)
            while not self._told.empty():
                waiting.append(self._told.get())
            if waiting:
                try:
                    self._send(client, waiting)
                    waiting, away = [], False
                except Exception as e:  # whatever its client raises: the trainer goes on
                    if not away:
                        log.warning("mlflow %s: %s: kept for later", self._url, str(e).splitlines()[0])
                    away = True
            if ending:
                return

    def _send(self, client: Any, manifests: list[Manifest]) -> None:
        run = self._run(client)
        metrics = [m for manifest in manifests if manifest.kind == "delta" for m in _metrics(manifest)]
        for at in range(0, len(metrics), MOST_METRICS):
            client.log_batch(run, metrics=metrics[at : at + MOST_METRICS])
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder) / "manifests.json"
            index.write_text(json.dumps([_entry(m) for m in self._kept()], indent=1))
            client.log_artifact(run, str(index))
            for manifest in manifests:
                if manifest.kind == "base":
                    self._register(client, run, manifest, Path(folder))

    def _kept(self) -> list[Manifest]:
        try:
            return self._log.manifests(self._lineage)
        except (LogError, FileNotFoundError):  # pruned while it was listed: the next index has it right
            return []

    def _run(self, client: Any) -> str:
        """The lineage's run: found by its tag, or made."""
        if not self._run_id:
            name = f"minutehand-{self._source}"
            found = client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else client.create_experiment(name)
            runs = client.search_runs([experiment], f"tags.lineage = '{self._lineage}'", max_results=1)
            run = (
                runs[0]
                if runs
                else client.create_run(experiment, tags={"lineage": self._lineage}, run_name=self._lineage)
            )
            self._run_id = run.info.run_id
        return self._run_id

    def _register(self, client: Any, run: str, base: Manifest, folder: Path) -> None:
        from mlflow.exceptions import MlflowException

        name = f"minutehand-{self._source}"
        try:
            client.create_registered_model(name)
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {"lineage": base.lineage, "seq": str(base.seq), "sha256": base.sha256}
        mine = client.search_model_versions(f"name = '{name}' and run_id = '{run}'")
        version = next((v for v in mine if v.tags.get("sha256") == base.sha256), None)
        if version is None:
            pointer = folder / "pointer.json"
            pointer.write_text(json.dumps({**tags, "folder": str(base.folder)}, indent=1))
            client.log_artifact(run, str(pointer), artifact_path=base.name)
            source = f"{client.get_run(run).info.artifact_uri}/{base.name}"
            version = client.create_model_version(name, source=source, run_id=run, tags=tags)
        client.set_registered_model_alias(name, ALIAS, version.version)


def _metrics(manifest: Manifest) -> list[Any]:
    from mlflow.entities import Metric

    values = {
        "rows": sum(t.rows for t in manifest.tables.values()),
        "removed": sum(t.removed for t in manifest.tables.values()),
        "bytes": manifest.bytes,
        "learned": manifest.learned["count"],
        **manifest.metrics,
    }
    return [Metric(name, float(value), manifest.created_ms, manifest.seq) for name, value in values.items()]


def _entry(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "sha256": manifest.sha256,
        "previous": manifest.previous,
        "created_ms": manifest.created_ms,
        "learned_until_ms": manifest.learned_until_ms,
        "bytes": manifest.bytes,
        "tables": {name: {"rows": t.rows, "total": t.total} for name, t in manifest.tables.items()},
    }
