"""The record in MLflow, off the path of deltas: an outage of it delays nothing and loses only what it would show.

A lineage is a run (tag `lineage`), which a restarted trainer goes on with. Each delta is a step; the index of manifests
is the run's artifact `manifests.json`; each base is a model version, the newest one has the alias `trained`
(training.record.registry).
"""

from __future__ import annotations

import json
import logging
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from training.record import registry

EVERY_S = 3.0
"""Between two batches: one log_batch of 100 metrics takes 0.1 s on MLflow's SQLite, one metric nearly as long."""
MOST_METRICS = 1000  # of one log_batch, MLflow's own limit

log = logging.getLogger("tracking")


class Tracking:
    """Sends what it is told from a thread of its own; `with` ends it with a last attempt. `url` "none" does nothing."""

    def __init__(self, url: str, delta_log: Log, lineage: str, source: str) -> None:
        registry.require_mlflow(url)  # here: the thread could only log it
        self._url, self._log, self._lineage = url, delta_log, lineage
        self._source = source
        self._told: queue.SimpleQueue[Manifest] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._run_id = ""
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)
        if url != "none":
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
        client, waiting, away = registry.client_of(self._url), [], False  # its import is not the trainer's to wait for
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
        run = self._run_id = self._run_id or registry.run_of(client, self._source, self._lineage)
        metrics = [m for manifest in manifests if manifest.kind == "delta" for m in _metrics(manifest)]
        for at in range(0, len(metrics), MOST_METRICS):
            client.log_batch(run, metrics=metrics[at : at + MOST_METRICS])
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder) / "manifests.json"
            index.write_text(json.dumps([_entry(m) for m in self._kept()], indent=1))
            client.log_artifact(run, str(index))
        for manifest in manifests:
            if manifest.kind == "base":
                registry.register(client, self._source, run, manifest, registry.TRAINED)

    def _kept(self) -> list[Manifest]:
        try:
            return self._log.manifests(self._lineage)
        except (LogError, FileNotFoundError):  # pruned while it was listed: the next index has it right
            return []


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
