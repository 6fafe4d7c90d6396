"""Confirms served deltas: one JSON line for each in sync.jsonl, and the metrics."""

from __future__ import annotations

import json
from pathlib import Path

from common.disk import append
from delta_log.manifest import Manifest
from serving.sync.metrics import Metrics


class Confirmations:
    """Writes the sync.jsonl of one model. Each delta is confirmed once, whichever process is killed.

    A line that cannot be written, as on a full disk, is kept for the next `write`.
    """

    def __init__(self, path: Path, metrics: Metrics, model: str) -> None:
        self._path, self._metrics, self._model = path, metrics, model
        self._newest: dict[str, int] = {}
        self._unwritten = b""
        self._read()

    def _read(self) -> None:
        """Reads the newest seq of each lineage. Removes a line that a kill cut short: its delta is confirmed again."""
        data = self._path.read_bytes() if self._path.exists() else b""
        lines = data[: data.rfind(b"\n") + 1]
        if len(lines) < len(data):
            with open(self._path, "r+b") as file:
                file.truncate(len(lines))
        for line in lines.splitlines():
            entry = json.loads(line)
            self._newest[entry["lineage"]] = max(entry["seq"], self._newest.get(entry["lineage"], 0))

    def last(self, lineage: str, base_seq: int) -> int:
        """The newest confirmed seq of a lineage, at least that of its base."""
        return max(base_seq, self._newest.get(lineage, 0))

    def confirm(
        self, m: Manifest, chunks: int, apply_ms: float, confirmed_s: float, digests_equal: bool | None
    ) -> None:
        """Notes for `write` that `m` is served since `confirmed_s` (wall clock).

        `digests_equal` is None if none was compared.
        """
        if m.seq <= self._newest.get(m.lineage, 0):
            return
        confirmed_ms = int(confirmed_s * 1000)
        written = {kind: m.written_ms.get(kind, {}) for kind in ("positive", "negative")}
        rows = sum(t.rows for t in m.tables.values())
        entry = {
            "lineage": m.lineage, "seq": m.seq, "rows": rows, "bytes": m.bytes,
            "removed": sum(t.removed for t in m.tables.values()), "chunks": chunks, "apply_ms": round(apply_ms, 3),
            "confirmed_ms": confirmed_ms, "learned_until_ms": m.learned_until_ms, "written_ms": written,
            "digests_equal": digests_equal,
        }  # fmt: skip
        self._unwritten += json.dumps(entry).encode() + b"\n"
        self._newest[m.lineage] = m.seq
        metrics, model = self._metrics, self._model
        metrics.deltas.labels(model).inc()
        metrics.rows.labels(model).inc(rows)
        metrics.bytes.labels(model).inc(m.bytes)
        metrics.apply.labels(model).observe(apply_ms / 1000)
        for kind, bins in written.items():
            for ms, count in bins.items():
                for _ in range(count):
                    metrics.freshness.labels(model, kind).observe(max(0.0, (confirmed_ms - int(ms)) / 1000))

    def write(self) -> None:
        """Appends the lines of all deltas that were confirmed. After an OSError it can be called again."""
        if self._unwritten:
            append(self._path, self._unwritten)
            self._unwritten = b""
