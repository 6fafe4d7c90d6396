"""Measures how good the rankers are: what freshness is worth, and what each claim of docs/models.md rests on.

    python -m benchmarks.quality                                # all parts, 5 seeds
    python -m benchmarks.quality --only freshness --seeds 2     # one part; the results of the others stay

A part is a module of benchmarks/rankers. Its function `run(seeds)` returns the rows and its share of the summary
(benchmarks/common/parts.py `Part`). All run in this process, with one thread, without services. It writes
benchmarks/results/quality.json, and the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from benchmarks.common import pages  # noqa: E402
from benchmarks.common.figures import commit, machine  # noqa: E402
from common import process  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "quality.json"
PARTS = sorted(file.stem for file in (ROOT / "benchmarks" / "rankers").glob("*.py"))


def measured(part: str, seeds: Sequence[int]) -> dict[str, Any]:
    """One part's result, with the commit and the time that it took."""
    began = time.monotonic()
    rows, summary = importlib.import_module(f"benchmarks.rankers.{part}").run(seeds)
    return {
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "commit": commit(),
        "seconds": round(time.monotonic() - began),
        "rows": rows,
        "summary": {name: float(f"{value:.4g}") for name, value in summary.items()},
    }


def merged(before: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """The whole result: new parts take the place of earlier ones, which stay otherwise."""
    all_parts = {name: part for name, part in (before.get("parts", {}) | parts).items() if name in PARTS}
    summary = {name: value for part in all_parts.values() for name, value in part["summary"].items()}
    return {"machine": machine(), "parts": all_parts, "summary": summary}


def measure(args: argparse.Namespace) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for part in args.only:
        print(f"measuring {part}, {args.seeds} seeds", file=sys.stderr, flush=True)
        result = measured(part, range(args.seeds))
        before = json.loads(args.out.read_text()) if args.out.is_file() else {}
        args.out.write_text(json.dumps(merged(before, {part: result}), indent=1) + "\n")
    print(pages.quality(json.loads(args.out.read_text())))
    if args.out == OUT:
        pages.write()


def parts(text: str) -> list[str]:
    """The names in a list with commas. Raises ValueError for one that is no part."""
    names = text.split(",")
    if wrong := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"part is {wrong[0]!r}, allowed are {', '.join(PARTS)}")
    return names


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.quality", __doc__ or "")
    parser.add_argument("--only", type=parts, default=PARTS, metavar="PART,PART", help="these parts (default: all)")
    parser.add_argument(
        "--seeds", type=process.at_least(1), default=5, metavar="N", help="seeds 0 to N - 1 (default: 5)"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="where the result goes")
    args = parser.parse_args(argv)
    return process.run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
