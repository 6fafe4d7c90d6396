"""Writes the delta log of the benchmark of serving: a base with one large table, and deltas that change its rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.common.figures import ROOT
from delta_log.files import TableRows, read_dense
from delta_log.log import Log
from delta_log.manifest import Manifest
from delta_log.writer import Cut, Writer
from streaming.sources.simulator import declaration

SOURCE = "simulator"
LINEAGE = "000001-0a1b2c3d"
LARGE, SMALL_ROWS = "clip", 1000


def write(folder: Path, rows: int, deltas: int, delta_rows: int) -> tuple[Log, list[Manifest]]:
    """A log whose table LARGE has `rows` rows, and its deltas. Each changes `delta_rows` of them.

    The dense weights are those of an untrained base of the model that is served by default.
    """
    command = [sys.executable, "-m", "training.learn.batch_pass", "--source", SOURCE, "--untrained"]
    subprocess.run([*command, "--log", str(folder / "untrained")], cwd=ROOT, check=True, capture_output=True)
    untrained = Log(folder / "untrained")
    first = untrained.manifest(untrained.lineages()[0], "base", 0)
    draw = np.random.default_rng(0)
    sizes = {table: rows if table == LARGE else SMALL_ROWS for table in declaration.tables}

    def cut(keys: dict[str, int], seq: int) -> Cut:
        """`keys`: table -> how many of its rows, drawn at random unless all of them."""
        tables = {}
        for table, info in first.tables.items():
            n = keys.get(table, 0)
            ids = np.arange(n) if n == sizes[table] else np.sort(draw.choice(sizes[table], n, replace=False))
            values = draw.standard_normal((n, info.dim), np.float32) * np.float32(0.02)
            slots, ticks = np.zeros((n, info.slots), np.float32), np.full(n, seq, np.uint32)
            tables[table] = TableRows(ids.astype(np.int64), values, slots, ticks, np.empty(0, np.int64))
        return Cut(
            source=SOURCE, declaration=declaration.sha256, model=first.model, tables=tables, dense=read_dense(first),
            totals=sizes, tick=seq, learned_until_ms=1000 * seq,
        )  # fmt: skip

    log = Log(folder / "log")
    with Writer(log, LINEAGE) as writer:
        writer.first_base(cut(sizes, 0))
        return log, [writer.delta(cut({LARGE: delta_rows}, seq)) for seq in range(1, deltas + 1)]
