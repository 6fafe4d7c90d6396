"""The record of a sync: one JSON line a confirmed delta in sync.jsonl, its metrics, and its faults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from delta_log.manifest import Manifest

FRESHNESS_S = (0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 30, 45, 60, 61, 62, 63, 65, 75, 90, 120, 300, 900, 3600)


class Metrics:
    """The metrics of one sync process; each has the label `model`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name, model = "minutehand_sync_", ["model"]
        self.seq = Gauge(name + "seq", "Newest delta that the replica serves", [*model, "lineage"], registry=registry)
        self.behind = Gauge(name + "behind", "Deltas in the log that the replica lacks", model, registry=registry)
        self.errors = Counter(name + "errors", "Refusals, by reason", [*model, "reason"], registry=registry)
        self.mismatches = Counter(name + "digest_mismatches", "Served digests that differ", model, registry=registry)
        self.journals = Counter(name + "journals", "Journals written", model, registry=registry)
        self.deltas = Counter(name + "deltas", "Deltas confirmed", model, registry=registry)
        self.rows = Counter(name + "rows", "Rows applied", model, registry=registry)
        self.bytes = Counter(name + "bytes", "Bytes of the deltas", model, registry=registry)
        self.apply = Histogram(
            name + "apply_seconds", "From reading a delta to its confirmation", model, registry=registry
        )
        self.freshness = Histogram(
            "minutehand_freshness_seconds", "From an event's Kafka timestamp to the delta's confirmation here",
            [*model, "kind"], buckets=FRESHNESS_S, registry=registry,
        )  # fmt: skip


class Confirmations:
    """Appends to sync.jsonl of one model and counts. A delta is confirmed once, whatever is killed in between."""

    def __init__(self, path: Path, metrics: Metrics, model: str) -> None:
        self._path, self._metrics, self._model = path, metrics, model
        self._last: dict[str, int] = {}
        self._read()

    def _read(self) -> None:
        """Reads the newest seq of each lineage. A line that a kill cut short goes; its delta is confirmed again."""
        data = self._path.read_bytes() if self._path.exists() else b""
        lines = data[: data.rfind(b"\n") + 1]
        if len(lines) < len(data):
            with open(self._path, "r+b") as f:
                f.truncate(len(lines))
        for line in lines.splitlines():
            entry = json.loads(line)
            self._last[entry["lineage"]] = max(entry["seq"], self._last.get(entry["lineage"], 0))

    def last(self, lineage: str, base_seq: int) -> int:
        """The newest confirmed seq of a lineage, at least that of its base."""
        return max(base_seq, self._last.get(lineage, 0))

    def confirm(
        self, m: Manifest, chunks: int, apply_ms: float, confirmed_s: float, digests_equal: bool | None
    ) -> None:
        """`m` is served since `confirmed_s` (wall clock). `digests_equal` is None where there was none to compare."""
        if m.seq <= self._last.get(m.lineage, 0):
            return
        now = int(confirmed_s * 1000)
        written = {kind: m.written_ms.get(kind, {}) for kind in ("positive", "negative")}
        rows = sum(t.rows for t in m.tables.values())
        entry: dict[str, Any] = {
            "lineage": m.lineage, "seq": m.seq, "rows": rows, "bytes": m.bytes,
            "removed": sum(t.removed for t in m.tables.values()), "chunks": chunks, "apply_ms": round(apply_ms, 3),
            "confirmed_ms": now, "learned_until_ms": m.learned_until_ms, "written_ms": written,
            "digests_equal": digests_equal,
        }  # fmt: skip
        with open(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), "ab") as f:
            f.write(json.dumps(entry).encode() + b"\n")
        self._last[m.lineage] = m.seq
        metrics, model = self._metrics, self._model
        metrics.deltas.labels(model).inc()
        metrics.rows.labels(model).inc(rows)
        metrics.bytes.labels(model).inc(m.bytes)
        metrics.apply.labels(model).observe(apply_ms / 1000)
        for kind, bins in written.items():
            for ms, count in bins.items():
                for _ in range(count):
                    metrics.freshness.labels(model, kind).observe(max(0.0, (now - int(ms)) / 1000))


class Faults:
    """Named reasons why the replica does not follow the log. Each is logged when it begins and when it ends."""

    def __init__(self, logger: Any, errors: Counter, model: str) -> None:
        self._logger, self._errors, self._model = logger, errors, model
        self._now: dict[str, str] = {}

    def report(self, reason: str, text: str) -> None:
        """Records a fault: `reason` is a short constant (a metric's label), `text` the whole message."""
        if self._now.get(reason) != text:
            self._logger.error("%s: %s", reason, text)
            self._errors.labels(self._model, reason).inc()
        self._now[reason] = text

    def clear(self, *reasons: str) -> None:
        """Ends the faults of these reasons."""
        for reason in reasons:
            if self._now.pop(reason, None) is not None:
                self._logger.info("%s: over", reason)

    def text(self) -> str:
        return "; ".join(f"{reason}: {text}" for reason, text in self._now.items())
