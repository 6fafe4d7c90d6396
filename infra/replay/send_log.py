"""The replay's send log: every impression that was sent, with its outcomes and scores, and the replay's progress.

`impressions-<part>.parquet` hold a row for each impression. A row is written when the last of its outcomes was sent, so
it tells what was sent, not what was planned. `progress.json` is replaced twice a second, for a live screen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.auc import auc
from common.disk import replace, replacing
from infra.replay.scoring import Prediction
from streaming.declaration import Declaration
from streaming.source import Exposure

PART_ROWS = 20_000
AUC_EVERY_S = 2.0
"""The AUC so far is computed this often: it sorts all scores."""


def schema(declaration: Declaration) -> pa.Schema:
    """The columns of a part. outcome_<task> is the time of the action that was sent, or null; value_<task> its value.

    Only value tasks have a value.
    """
    tasks = declaration.tasks
    return pa.schema(
        [
            ("impression_id", pa.string()),
            *((name, pa.int64()) for name in ("user_id", "item_id", "ts_ms", "wall_ms")),
            *((f"outcome_{task}", pa.int64()) for task in tasks),
            *((f"value_{task}", pa.float64()) for task in declaration.values),
            *((f"served_{task}", pa.float64()) for task in tasks),
            *((f"frozen_{task}", pa.float64()) for task in tasks),
            ("seq", pa.int64()),
            ("lineage", pa.string()),
            ("predict_ms", pa.float64()),
            ("ok", pa.bool_()),
        ]
    )


class SendLog:
    """Writes the log into a folder, in place of a former replay's."""

    def __init__(self, folder: Path, declaration: Declaration) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*impressions-*.parquet*"):
            old.unlink()
        self.folder, self.declaration, self.schema = folder, declaration, schema(declaration)
        self.predict_ms: list[float] = []
        self.predictions = self.failed = self.failed_frozen = 0
        self._open: dict[str, tuple[dict[str, Any], set[str]]] = {}  # rows, and the tasks whose outcome is to come
        self._rows: list[dict[str, Any]] = []
        self._parts = 0
        self._unjudged: list[tuple[int, dict[str, Any]]] = []  # rows, and when their windows close
        self._judged: list[tuple[float, float, float]] = []  # label, served score, frozen score
        self._auc: dict[str, Any] = {"task": declaration.judged, "served": None, "frozen": None, "labels": 0}
        self._next_auc = 0.0

    def impression(self, exposure: Exposure, served: Prediction, frozen: Prediction, lineage: str) -> None:
        """Adds an impression that was sent."""
        tasks = self.declaration.tasks
        row: dict[str, Any] = {
            "impression_id": exposure.impression_id,
            "user_id": exposure.user_id,
            "item_id": exposure.item_id,
            "ts_ms": exposure.ts_ms,
            "wall_ms": time.time_ns() // 1_000_000,
            **{f"outcome_{task}": None for task in tasks},
            **{f"value_{task}": exposure.values.get(task, 1.0) for task in self.declaration.values},
            **{f"served_{task}": served.scores.get(task) for task in tasks},
            **{f"frozen_{task}": frozen.scores.get(task) for task in tasks},
            "seq": served.seq,
            "lineage": lineage,
            "predict_ms": served.ms,
            "ok": bool(served.scores),
        }
        self.predictions += bool(served.scores)
        self.failed += not served.scores
        self.failed_frozen += not frozen.scores
        if served.scores and frozen.scores:
            self._unjudged.append((exposure.ts_ms + self.declaration.window_ms, row))
        waiting = {task for task in exposure.outcomes if task in tasks}
        if waiting:
            self._open[exposure.impression_id] = (row, waiting)
        else:
            self._close(row)

    def outcome(self, impression_id: str, task: str, ts_ms: int) -> None:
        """Adds an action that was sent."""
        row, waiting = self._open.get(impression_id, ({}, set()))
        if task in waiting:
            row[f"outcome_{task}"] = ts_ms
            waiting.remove(task)
            if not waiting:
                del self._open[impression_id]
                self._close(row)

    def progress(self, clock_ms: int, more: Mapping[str, Any], now: bool = False) -> None:
        """Replaces progress.json: counts, latencies, the AUC so far, and `more`. `now`: computes the AUC anew."""
        if now or time.monotonic() >= self._next_auc:
            self._judge(clock_ms)
            self._next_auc = time.monotonic() + AUC_EVERY_S
        p50, p99 = np.percentile(self.predict_ms, (50, 99)).round(3).tolist() if self.predict_ms else (None, None)
        facts = {
            "predictions": self.predictions,
            "failed": self.failed,
            "failed_frozen": self.failed_frozen,
            "predict_ms": {"p50": p50, "p99": p99},
            "auc": self._auc,
            "clock_ms": clock_ms,
            **more,
        }
        replace(self.folder / "progress.json", json.dumps(facts).encode())

    def close(self) -> None:
        """Writes the rows that are left. Outcomes that were not sent stay null."""
        self._rows += [row for row, _ in self._open.values()]
        self._open.clear()
        self._write()

    def _close(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS:
            self._write()

    def _write(self) -> None:
        if self._rows:
            with replacing(self.folder / f"impressions-{self._parts:05}.parquet") as aside:
                pq.write_table(pa.Table.from_pylist(self._rows, self.schema), aside)
            self._rows, self._parts = [], self._parts + 1

    def _judge(self, clock_ms: int) -> None:
        """The AUC of the judged task over the impressions whose windows have closed. Others would lack positives."""
        task, window_ms = self.declaration.judged, self.declaration.window_ms
        waiting = []
        for closes_ms, row in self._unjudged:
            if closes_ms > clock_ms:
                waiting.append((closes_ms, row))
                continue
            at = row[f"outcome_{task}"]
            label = float(at is not None and at <= row["ts_ms"] + window_ms)
            self._judged.append((label, row[f"served_{task}"], row[f"frozen_{task}"]))
        self._unjudged = waiting
        if self._judged:
            labels, served, frozen = np.array(self._judged).T
            both = [auc(labels, scores) for scores in (served, frozen)]
            rounded = [None if np.isnan(value) else round(value, 5) for value in both]
            self._auc = {"task": task, "served": rounded[0], "frozen": rounded[1], "labels": len(labels)}
