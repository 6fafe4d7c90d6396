"""The live screen of a running replay: one rich table in a terminal, one plain line each few seconds without."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from delta_log.log import Log
from infra.replay.report import freshness, weighted_percentiles
from infra.tail import Refused

PLAIN_EVERY_S = 10.0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file that may still grow; none if there is no file yet."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Screen:
    """Shows the state that the processes write to disk: progress.json, the delta log, sync.jsonl."""

    def __init__(self, send_log: Path, log: Path, sync_lines: Path, refused: Refused, console: Console) -> None:
        self.send_log, self.log, self.sync_lines, self.console = send_log, Log(log), sync_lines, console
        self.refused = refused
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.printed = 0.0
        self.points: list[tuple[int, int]] = []

    def __enter__(self) -> Screen:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def state(self) -> list[tuple[str, str]]:
        """(name, text) of each line."""
        rows: list[tuple[str, str]] = []
        progress_file = self.send_log / "progress.json"
        if progress_file.is_file():
            rows += self._progress(json.loads(progress_file.read_text()))
        if counts := self.refused.count():
            rows.append(("refused", ", ".join(f"{topic} {count}" for topic, count in counts.items())))
        lineage = self.log.serving()
        confirmed = [c for c in read_lines(self.sync_lines) if c["lineage"] == lineage]
        if confirmed:
            last = confirmed[-1]
            rows.append(
                ("deltas", f"{last['seq']} served; the last: {last['rows']} rows, {last['bytes'] / 1000:.0f} kB")
            )
            ages = weighted_percentiles(freshness(confirmed, "positive"), (50, 99))
            if ages["p99"] is not None:
                rows.append(
                    ("freshness", f"p50 {ages['p50']:.1f} s, p99 {ages['p99']:.1f} s from click to served model")
                )
        return rows

    def _progress(self, p: dict[str, Any]) -> list[tuple[str, str]]:
        done = (p["clock_ms"] - p["start_ms"]) / max(p["end_ms"] - p["start_ms"], 1)
        self.points = [*self.points[-20:], (p["wall_ms"], p["events"])]
        (t0, n0), (t1, n1) = self.points[0], self.points[-1]
        rate = f"{1000 * (n1 - n0) / (t1 - t0):.0f} events/s" if t1 > t0 else "starting"
        slow = ", slowed down: the loop lags" if p["throttled"] else ""
        took = p["predict_ms"]["p50"]
        median = "" if took is None else f", p50 {took:.1f} ms"
        rows = [
            ("replay", f"{100 * done:.0f} % of event time, {p['events']} events, {rate}{slow}"),
            ("predictions", f"{p['predictions']}, {p['failed']} failed{median}"),
            ("lag", f"{p['lag_s']:.1f} s behind the replay's clock"),
        ]
        for name in ("served", "frozen"):
            if p["auc"][name] is not None:
                rows.append((f"AUC {name}", f"{p['auc'][name]:.4f} ({p['auc']['task']}, so far)"))
        if None not in (p["auc"]["served"], p["auc"]["frozen"]):
            rows.append(("served - frozen", f"{p['auc']['served'] - p['auc']['frozen']:+.4f}"))
        return rows

    def show(self) -> None:
        """Draws once. Call it about twice a second."""
        if self.live:
            table = Table.grid(padding=(0, 2))
            for name, text in self.state():
                table.add_row(f"[bold]{name}[/]", text)
            self.live.update(table, refresh=True)
        elif time.monotonic() - self.printed >= PLAIN_EVERY_S:
            self.printed = time.monotonic()
            line = "; ".join(f"{name}: {text}" for name, text in self.state())
            if line:
                self.console.print(line, soft_wrap=True, highlight=False)
