"""The replay's send log: every impression it sent, with its outcomes and scores, and its progress for a live screen.

`impressions-<part>.parquet` hold one row an impression, written when the last of its outcomes was sent, so that they
say what was sent and not what was going to be. `progress.json` is replaced atomically.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.auc import auc
from streaming.declaration import Declaration
from streaming.source import Exposure

_PART_ROWS = 20_000
_CURVE_S = 2.0
"""AUC so far is computed this often: it sorts all scores."""


def schema(declaration: Declaration) -> pa.Schema:
    """The columns of a part: outcome_<task> is when it was sent to have happened, null where it was not."""
    tasks = declaration.tasks
    return pa.schema(
        [
            ("impression_id", pa.string()),
            *((name, pa.int64()) for name in ("user_id", "item_id", "ts_ms", "wall_ms")),
            *((f"outcome_{task}", pa.int64()) for task in tasks),
            *((f"served_{task}", pa.float64()) for task in tasks),
            *((f"frozen_{task}", pa.float64()) for task in tasks),
            ("seq", pa.int64()),
            ("lineage", pa.string()),
            ("predict_ms", pa.float64()),
            ("ok", pa.bool_()),
        ]
    )


class SendLog:
    """Writes DIR; what a former replay left there is removed."""

    def __init__(self, folder: Path, declaration: Declaration) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("impressions-*.parquet*"):
            old.unlink()
        self.folder, self.declaration, self.schema = folder, declaration, schema(declaration)
        self._open: dict[str, tuple[dict[str, Any], set[str]]] = {}
        self._rows: list[dict[str, Any]] = []
        self._parts = 0
        self._unjudged: list[tuple[int, dict[str, Any]]] = []
        self._judged: list[tuple[float, float, float]] = []
        self._auc: dict[str, Any] = {"task": declaration.judged, "served": None, "frozen": None, "labels": 0}
        self._next_curve = 0.0
        self.predict_ms: list[float] = []
        self.predictions = self.failed = self.failed_frozen = 0

    def impression(
        self,
        exposure: Exposure,
        served: Mapping[str, float],
        frozen: Mapping[str, float],
        seq: int,
        lineage: str,
        predict_ms: float,
    ) -> None:
        """One impression that was sent; empty scores mean that the prediction failed."""
        tasks = self.declaration.tasks
        row: dict[str, Any] = {
            "impression_id": exposure.impression_id,
            "user_id": exposure.user_id,
            "item_id": exposure.item_id,
            "ts_ms": exposure.ts_ms,
            "wall_ms": time.time_ns() // 1_000_000,
            **{f"outcome_{task}": None for task in tasks},
            **{f"served_{task}": served.get(task) for task in tasks},
            **{f"frozen_{task}": frozen.get(task) for task in tasks},
            "seq": seq,
            "lineage": lineage,
            "predict_ms": predict_ms,
            "ok": bool(served),
        }
        self.predictions += bool(served)
        self.failed += not served
        self.failed_frozen += not frozen
        if served and frozen:
            self._unjudged.append((exposure.ts_ms + self.declaration.window_ms, row))
        waiting = {task for task in exposure.outcomes if task in tasks}
        if waiting:
            self._open[exposure.impression_id] = (row, waiting)
        else:
            self._close(row)

    def outcome(self, impression_id: str, task: str, ts_ms: int) -> None:
        """One action that was sent."""
        if impression_id in self._open:
            row, waiting = self._open[impression_id]
            if task in waiting:
                row[f"outcome_{task}"] = ts_ms
                waiting.remove(task)
            if not waiting:
                self._close(self._open.pop(impression_id)[0])

    def progress(self, clock_ms: int, more: Mapping[str, Any], now: bool = False) -> None:
        """Replaces progress.json with the counts, latencies, AUC so far, and `more`. `now`: AUC anew."""
        if now or time.monotonic() >= self._next_curve:
            self._judge(clock_ms)
            self._next_curve = time.monotonic() + _CURVE_S
        p50, p99 = np.percentile(self.predict_ms, (50, 99)).round(3).tolist() if self.predict_ms else (None, None)
        text = {
            "predictions": self.predictions,
            "failed": self.failed,
            "failed_frozen": self.failed_frozen,
            "predict_ms": {"p50": p50, "p99": p99},
            "auc": self._auc,
            "clock_ms": clock_ms,
            **more,
        }
        aside = self.folder / "progress.json.new"
        aside.write_text(json.dumps(text))
        os.replace(aside, self.folder / "progress.json")

    def close(self) -> None:
        """Writes what is left; outcomes that were not sent stay null."""
        for row, _ in self._open.values():
            self._rows.append(row)
        self._open.clear()
        self._write()

    def _close(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _PART_ROWS:
            self._write()

    def _write(self) -> None:
        if not self._rows:
            return
        path = self.folder / f"impressions-{self._parts:05}.parquet"
        aside = path.with_suffix(".parquet.new")
        pq.write_table(pa.Table.from_pylist(self._rows, self.schema), aside)
        os.replace(aside, path)
        self._rows, self._parts = [], self._parts + 1

    def _judge(self, clock_ms: int) -> None:
        """AUC of the judged task over the impressions whose window has closed: earlier, positives would be too many."""
        task, window = self.declaration.judged, self.declaration.window_ms
        rest = []
        for closes_ms, row in self._unjudged:
            if closes_ms > clock_ms:
                rest.append((closes_ms, row))
                continue
            at = row[f"outcome_{task}"]
            label = float(at is not None and at <= row["ts_ms"] + window)
            self._judged.append((label, row[f"served_{task}"], row[f"frozen_{task}"]))
        self._unjudged = rest
        if self._judged:
            label, served, frozen = np.array(self._judged).T
            both = [auc(label, scores) for scores in (served, frozen)]
            known = [None if np.isnan(value) else round(value, 5) for value in both]
            self._auc = {"task": task, "served": known[0], "frozen": known[1], "labels": len(label)}
