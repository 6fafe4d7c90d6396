"""Records a lineage's deltas and bases in MLflow, from a thread of its own: an outage of MLflow delays no delta.

A lineage is a run (tag `lineage`), with which a restarted trainer continues. Each delta is a step. A killed trainer
may have written deltas that MLflow never got. So the first batch of a new trainer has all manifests that the log keeps
and MLflow lacks. The index of manifests is the run's artifact `manifests.json`. Each base is a model version, and the
newest one has the alias `trained` (training.record.registry).
"""

from __future__ import annotations

import json
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

from common import process
from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from training.record import registry

EVERY_S = 3.0
"""Between two batches. MLflow's SQLite takes 0.1 s for a log_batch of 100 metrics, and nearly as long for one."""
MOST_METRICS = 1000  # of one log_batch, MLflow's own limit

log = process.logger("tracking")


class Tracking:
    """Sends manifests from its thread; the end of `with` makes a last attempt. With `url` "none" it does nothing."""

    def __init__(self, url: str, delta_log: Log, lineage: str, source: str) -> None:
        registry.require_mlflow(url)  # here, because the thread could only log the error
        self._url, self._log, self._lineage = url, delta_log, lineage
        self._source = source
        self._queue: queue.SimpleQueue[Manifest] = queue.SimpleQueue()
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

    def add(self, manifest: Manifest) -> None:
        """Records a delta as a step, or a base as a model version, unless it is one already."""
        if self._url != "none":
            self._queue.put(manifest)

    def _loop(self) -> None:
        client: Any = None
        waiting: list[Manifest] = []
        reported = False
        while True:
            ending = self._ending.wait(EVERY_S)
            while not self._queue.empty():
                waiting.append(self._queue.get())
            if waiting:
                try:
                    client = client or registry.client_of(self._url)  # here: its import takes seconds
                    self._send(client, waiting)
                    waiting, reported = [], False
                except Exception as e:  # of any kind: the trainer continues
                    if not reported:
                        reason = e.reason if isinstance(e, registry.RecordError) else registry.reason_of(e)
                        log.warning("mlflow %s: %s: sent again later", self._url, reason)
                    reported = True
            if ending:
                return

    def _send(self, client: Any, manifests: list[Manifest]) -> None:
        run = self._run_id or registry.run_of(client, self._source, self._lineage)
        if not self._run_id:
            manifests = self._missing(client, run, manifests)
        metrics = [m for manifest in manifests if manifest.kind == "delta" for m in _metrics(manifest)]
        for at in range(0, len(metrics), MOST_METRICS):
            client.log_batch(run, metrics=metrics[at : at + MOST_METRICS])
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder) / "manifests.json"
            index.write_text(json.dumps([_entry(m) for m in self._manifests()], indent=1))
            client.log_artifact(run, str(index))
        for manifest in manifests:
            if manifest.kind == "base":
                registry.register(client, self._source, run, manifest, registry.TRAINED)
        self._run_id = run  # the next batch need not look for what is missing

    def _missing(self, client: Any, run: str, waiting: list[Manifest]) -> list[Manifest]:
        """Returns the manifests that the log keeps and those that wait, but for deltas that are steps of the run."""
        steps = {metric.step for metric in client.get_metric_history(run, "learned")}
        manifests = {m.name: m for m in [*self._manifests(), *waiting]}.values()
        return [m for m in manifests if m.kind == "base" or m.seq not in steps]

    def _manifests(self) -> list[Manifest]:
        try:
            return self._log.manifests(self._lineage)
        except (LogError, FileNotFoundError):  # pruned while it was listed: the next index is right
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
