"""Writes the tables of README.md and of docs/ from the results, so that no figure is typed by hand.

A page has the comments `<!-- benchmarks: ratios -->` (or another kind) and `<!-- end -->`. The lines between are
replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.figures import ROOT
from benchmarks.cuckoo.summary import BATCH, GOALS, reached

RESULTS = ROOT / "benchmarks" / "results"
PAGES = {
    "ratios": "README.md",
    "cells": "docs/table.md",
    "serving": "docs/results.md",
    "quality": "docs/results.md",
}
"""Kind of a table -> its page."""
LABELS = {
    "find_vs_ceiling": "find: its rate / the rate of copying random rows through a random index line",
    "find_vs_row_copy": "find: its rate / the rate of copying random rows",
    "find_vs_gather": "find: its rate / that of `tf.gather` on a dense variable",
    "apply_vs_stock": "fused Adagrad: its rate / that of `ResourceSparseApplyAdagradV2`",
    "step_vs_addons": "lookup and apply: their rate / that of tensorflow-recommenders-addons 0.8.1",
    "two_threads_vs_ceiling": "speed-up of two threads / that of the copy",
    "worst_growth_cpu_ms": "longest batch of 4,096 while growing from empty to 10 M, ms of CPU",
    "export_pause_ms": "longest wait of a reader while 1 M rows are exported, ms",
    "index_bytes_per_key": "bytes of the index a key",
    "memory_vs_payload_16": "memory of 10 M rows / their payload, dim 16",
    "memory_vs_payload_32": "memory of 10 M rows / their payload, dim 32",
}
SERVING_RATIOS = {
    "p99_ratio": "p99 while a delta is applied / idle",
    "first_delta_p99_ratio": "p99 in the first delta after a load / idle",
    "grpc_1": "requests/s, gRPC, 1 client",
    "grpc_4": "requests/s, gRPC, 4 clients",
    "rest_1": "requests/s, REST, 1 client",
    "rest_4": "requests/s, REST, 4 clients",
    "available_s": "available after, s",
    "rss_vs_rows": "resident memory / bytes of the rows",
}
PHASES = {"idle": "idle", "applying": "while a delta is applied", "first_delta": "in the first delta"}
CONTESTANTS = {
    "find": ("ours", "index_line", "row_copy", "gather", "DenseHashTable", "MutableHashTable"),
    "lookup": ("ours",),
    "apply": ("ours", "stock", "keras"),
    "import": ("ours", "DenseHashTable", "MutableHashTable"),
}


def write(root: Path = ROOT, results: Path = RESULTS) -> None:
    """Writes the pages' tables from the results that exist."""
    figures = read(results)
    for kind, page in PAGES.items():
        path = root / page
        path.write_text(filled(path.read_text(), kind, block(kind, figures)))


def read(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The benchmark's name -> its result."""
    return {file.stem: json.loads(file.read_text()) for file in results.glob("*.json")}


def filled(text: str, kind: str, lines: str) -> str:
    pattern = re.compile(rf"(<!-- benchmarks: {kind} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no place for benchmarks: {kind}")
    return pattern.sub(lambda m: m[1] + lines + m[2], text)


def block(kind: str, figures: dict[str, dict[str, Any]]) -> str:
    table, trainer = figures.get("table", {}), figures.get("trainer", {})
    if kind == "serving":
        return serving(figures.get("serving", {}))
    if kind == "quality":
        return quality(figures.get("quality", {}))
    return ratios(table, trainer) if kind == "ratios" else cells(table)


def ratios(table: dict[str, Any], trainer: dict[str, Any]) -> str:
    """A table with one row for each figure of the summaries, with its spread and goal."""
    if not table:
        return ""
    lines = ["| | figure (p10 to p90) | goal |", "|---|---|---|"]
    for name, figure in table["summary"].items():
        around = table["spread"].get(name) or []
        spread = f" ({around[0]:g} to {around[1]:g})" if "_vs_" in name and len(around) == 2 else ""
        if control := table["control"].get(name):
            spread = f" (a round: {each(around)}; the machine alone: {each(control)})"
        goal = f"{table['goals'][name]}: {'reached' if reached(name, figure) else 'missed'}" if GOALS[name][0] else ""
        lines.append(f"| {LABELS[name]} | {figure:g}{spread} | {goal} |")
    for race in trainer.get("races", []):
        v = race["vs_keras"]
        label = f"DeepFM's step: its rate / plain Keras', {race['viewers']:,} viewers and {race['clips']:,} clips"
        goal = f">= 3: {'reached' if v['median'] >= 3 else 'missed'}"
        lines.append(f"| {label} | {v['median']:.2f} ({v['p10']:.2f} to {v['p90']:.2f}) | {goal} |")
    if trainer:
        rate, us = trainer["summary"]["kafka_to_learned_per_core"], trainer["us_per_example"]
        goal = f">= 10,000: {'reached' if rate >= 10_000 else 'missed'}"
        lines.append(f"| examples/s of one core, from Kafka to learned | {rate:,} | {goal} |")
        lines += [f"| CPU an example, us: {part} | {value:g} | |" for part, value in us.items()]
    machine = table["machine"]
    host = f"{machine['cpu']}, {machine['cores']} virtual cores, {table['date']}"
    source = "`python -m benchmarks.table`, `.trainer`; date and commit of each part are in `benchmarks/results/`"
    return "\n".join([*lines, "", f"{host};", f"{source}.", ""])


def each(rounds: list[float]) -> str:
    return ", ".join(f"{ms:.1f}" for ms in rounds)


def cells(table: dict[str, Any]) -> str:
    """M keys/s in batches of 16,384: a table for each number of keys, with a row for each verb and contestant."""
    parts = {n: p for n, p in table.get("parts", {}).items() if n.startswith("speed-")}
    if not parts:
        return ""
    rates = {
        (c["verb"], c["contestant"], c["keys"] // 1_000_000, c["dim"], c["stream"]): c["M_keys_per_s"]
        for part in parts.values()
        for c in part["cells"]
        if c["batch"] == BATCH
    }
    columns = [(dim, stream) for dim in (16, 32) for stream in ("uniform", "zipf")]
    lines = []
    for keys in (1, 10):
        head = " | ".join(f"dim {dim}, {stream}" for dim, stream in columns)
        lines += [f"| {keys} M keys | {head} |", "|---" * (len(columns) + 1) + "|"]
        for verb, contestants in CONTESTANTS.items():
            for side in contestants:
                row = [rates.get((verb, side, keys, *column)) for column in columns]
                shown = " | ".join(f"{r['median']:.2f} / {r['p10']:.2f}" if r else "" for r in row)
                lines.append(f"| {verb}, {side} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def serving(result: dict[str, Any]) -> str:
    """A column for each server, a row for each figure."""
    if not result:
        return ""
    servers = result["servers"]
    goals = {name: f"; goal {goal}" for name, goal in result["goals"].items()}
    rows: dict[str, Callable[[dict[str, Any]], str]] = {}
    for name, label in SERVING_RATIOS.items():
        rows[label + goals.get(name, "")] = lambda s, name=name: f"{s['summary'][name]:g}"
    for phase, label in PHASES.items():
        rows[f"p50 / p99 / p99.9 {label}, ms"] = lambda s, phase=phase: " / ".join(
            f"{s['latency'][phase][name]:g}" for name in ("p50_ms", "p99_ms", "p99.9_ms")
        )
    rows["a delta, s"] = lambda s: f"{s['delta_s']['median']:g}"
    rows["failed requests"] = lambda s: str(s["failed"])
    lines = [f"| | {' | '.join(servers)} |", "|---" * (len(servers) + 1) + "|"]
    lines += [f"| {label} | {' | '.join(map(cell, servers.values()))} |" for label, cell in rows.items()]
    machine = result["machine"]
    before = f"; before: commit {result['before']}" if result["before"] else ""
    text = (
        f"{result['rows']:,} rows; {result['requests_per_s']} requests/s of {result['rows_per_request']} rows; deltas"
        f" of {result['delta_rows']:,} rows in chunks of {result['chunk_rows']:,}; {result['rounds']} rounds.",
        f"{machine['cpu']}, {machine['cores']} virtual cores, {result['date']}, commit {result['commit']}{before};",
        f"`{result['command']}`.",
    )
    return "\n".join([*lines, "", *text, ""])


def quality(result: dict[str, Any]) -> str:
    """A row for each figure: its mean and standard deviation over the seeds, and its goal."""
    if not result:
        return ""
    lines = ["| | mean | sd | seeds | goal |", "|---|---|---|---|---|"]
    for part in result["parts"].values():
        for r in part["rows"]:
            deviation = "" if r["sd"] is None else f"{r['sd']:g}"
            lines.append(f"| {r['label']} | {r['mean']:g} | {deviation} | {len(r['seeds'])} | {r['goal']} |")
    of_parts = [f"{name}: {p['date']}, commit {p['commit']}, {p['seconds']} s" for name, p in result["parts"].items()]
    host = f"{result['machine']['cpu']}, {result['machine']['cores']} virtual cores."
    return "\n".join(
        [*lines, "", "`python -m benchmarks.quality`;", f"{host}", "", *(f"- {text}" for text in of_parts), ""]
    )
