"""Measures the cuckoo table beside other tables, and beside what the memory allows.

    python -m benchmarks.table                  # all parts: about 20 minutes of 2 quiet cores, 16 GB
    python -m benchmarks.table --quick          # under a minute: small tables, no addons, writes nothing
    python -m benchmarks.table --only growth    # parts whose names begin with growth; the others keep their figures
    python -m benchmarks.table --resume         # the parts that this commit has not measured yet

Each part runs in a process of its own (with --quick all in one). In a part the contestants' batches take turns, in a
new order each round, so that a slow moment of the machine falls on all. Ratios are medians of the ratios of single
rounds. After each part it writes benchmarks/results/table.json: `summary`, and all cells with median, p10 and p90. At
the end it prints the ratios and writes the tables of README.md and docs/table.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.common import pages  # noqa: E402
from benchmarks.common.figures import commit, machine  # noqa: E402
from benchmarks.cuckoo import summary  # noqa: E402
from common import process  # noqa: E402
from common.errors import InputError  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "table.json"
M = 1_000_000
SIZES, STREAMS = [4096, 16_384, 65_536], ["uniform", "zipf"]


Part = tuple[tuple[str, dict[str, Any]], int]
"""A module of benchmarks/cuckoo with its options; seconds on 2 quiet cores."""


def speed(keys: int, dim: int, rounds: int = 60) -> tuple[str, dict[str, Any]]:
    return "speed", {"keys": keys, "dim": dim, "sizes": SIZES, "rounds": rounds, "streams": STREAMS}


PARTS: dict[str, Part] = {
    "speed-10M-16": (speed(10 * M, 16), 180),
    "speed-10M-32": (speed(10 * M, 32), 240),
    "speed-1M-16": (speed(M, 16), 90),
    "speed-1M-32": (speed(M, 32), 100),
    "threads-10M-16": (("threads", {"keys": 10 * M, "dim": 16, "batch": 16_384, "rounds": 60}), 40),
    "growth-10M-16": (("growth", {"keys": 10 * M, "dim": 16, "batch": 4096, "rounds": 3, "others": True}), 80),
    "growth-10M-32": (("growth", {"keys": 10 * M, "dim": 32, "batch": 4096, "rounds": 1, "others": True}), 60),
    "pause-10M-16": (("pause", {"keys": 10 * M, "dim": 16, "rows": 1_300_000, "rounds": 8}), 60),
    "memory-10M-16": (("memory", {"keys": 10 * M, "dim": 16}), 25),
    "memory-10M-32": (("memory", {"keys": 10 * M, "dim": 32}), 35),
    "files-10M-16": (("files", {"keys": 10 * M, "dim": 16, "rounds": 3}), 60),
    "addons-1M-16": (("addons", {"keys": M, "dim": 16, "batch": 16_384, "rounds": 40}), 60),
    "addons-10M-16": (("addons", {"keys": 10 * M, "dim": 16, "batch": 16_384, "rounds": 40}), 180),
}
K = 1000
QUICK: dict[str, Part] = {
    "speed-10M-16": (("speed", speed(200 * K, 16)[1] | {"rounds": 10, "sizes": [16_384], "streams": ["uniform"]}), 8),
    "threads-10M-16": (("threads", {"keys": 200 * K, "dim": 16, "batch": 16_384, "rounds": 10}), 7),
    "growth-10M-16": (("growth", {"keys": 400 * K, "dim": 16, "batch": 4096, "rounds": 1, "others": False}), 6),
    "pause-10M-16": (("pause", {"keys": 200 * K, "dim": 16, "rows": 100 * K, "rounds": 2}), 6),
    "files-10M-16": (("files", {"keys": 200 * K, "dim": 16, "rounds": 1}), 6),
    "memory-10M-16": (("memory", {"keys": 400 * K, "dim": 16}), 6),
    "memory-10M-32": (("memory", {"keys": 400 * K, "dim": 32}), 6),
}
"""The same parts of small tables. They make the same summary, but their figures mean little."""


def run(parts: dict[str, Part]) -> dict[str, Any]:
    """Runs these parts in one process. Returns the results."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out, tempfile.TemporaryFile() as log:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        options = json.dumps({name: part for name, (part, _) in parts.items()})
        command = [sys.executable, "-m", "benchmarks.cuckoo.part", options, out.name]
        if subprocess.run(command, cwd=ROOT, env=environment, stderr=log).returncode:
            log.seek(0)
            raise RuntimeError(f"{', '.join(parts)} failed:\n{log.read().decode()[-3000:]}")
        results: dict[str, Any] = json.loads(Path(out.name).read_text())
        return results


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.table", __doc__)
    parser.add_argument("--quick", action="store_true", help="small tables, no addons; writes nothing without --out")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--resume", action="store_true", help="leave out what this commit has measured already")
    parser.add_argument("--out", type=Path, help=f"where to write (default: {RESULT.relative_to(ROOT)})")
    args = parser.parse_args(argv)
    return process.run(lambda: measure(args))


def measure(args: argparse.Namespace) -> int:
    parts = {n: p for n, p in (QUICK if args.quick else PARTS).items() if n.startswith(tuple(args.only))}
    if not parts:
        raise InputError(f"--only is {' '.join(args.only)}, allowed are {', '.join(PARTS)}")
    out: Path | None = args.out or (None if args.quick else RESULT)
    whole: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {"parts": {}}
    at, failed = commit(), []
    if args.resume:
        parts = {n: p for n, p in parts.items() if whole["parts"].get(n, {}).get("commit") != at}
    left = sum(seconds for _, seconds in parts.values())
    groups = [parts] if args.quick else [{name: part} for name, part in parts.items()]
    for group in groups:
        expected = sum(seconds for _, seconds in group.values())
        print(f"{datetime.datetime.now():%H:%M:%S} {', '.join(group)}: {expected} of {left} s to the end", flush=True)
        begin = time.monotonic()
        try:
            results = run(group)
        except RuntimeError as e:  # the other parts are still measured
            failed += group
            print(e, file=sys.stderr)
        else:
            command = " ".join(["python -m benchmarks.table", *sys.argv[1:]])
            stamp = {"date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}", "commit": at, "command": command}
            whole["parts"] |= {name: stamp | result for name, result in results.items()}
            whole = {**stamp, "machine": machine(), **summary.of(whole["parts"]), "parts": whole["parts"]}
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(to_json(whole))
        left -= expected
        print(f"  took {time.monotonic() - begin:.0f} s, load average {os.getloadavg()[0]:.1f}", flush=True)
    if out == RESULT:
        pages.write()
    print(summary.table(whole) if whole["parts"] else "nothing is measured")
    if failed:
        print(f"failed: {', '.join(failed)}; python -m benchmarks.table --resume tries them again", file=sys.stderr)
    return 1 if failed else 0


def to_json(whole: dict[str, Any]) -> str:
    """JSON with one line for each cell."""
    text = json.dumps({k: v for k, v in whole.items() if k != "parts"}, indent=1)
    parts = []
    for name, part in whole["parts"].items():
        lines = []
        for key, value in part.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                cells = ",\n    ".join(json.dumps(cell) for cell in value)
                lines.append(f"   {json.dumps(key)}: [\n    {cells}\n   ]")
            else:
                lines.append(f"   {json.dumps(key)}: {json.dumps(value)}")
        parts.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    return text.removesuffix("\n}") + ',\n "parts": {\n' + ",\n".join(parts) + "\n }\n}\n"


if __name__ == "__main__":
    sys.exit(main())
