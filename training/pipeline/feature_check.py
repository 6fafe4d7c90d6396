"""Compares the features that were logged with impressions with what Feast held when they were read.

    python -m training.pipeline.feature_check --source S --archive DIR --begin T --end T --features DIR --docs DIR

Training learns the logged values. The feature store's join on arrival time must give the same for at least 99.9 % of
them; else the exit code is 2 and the last line names the feature. Features that were not read from the store, as of a
source that brings its own, are not compared: they must be there and finite.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from common import process
from common.interval import Interval
from streaming.archive.archive import Archive
from streaming.source import load
from training.pipeline import expectations
from training.pipeline.validation import check, docs_arguments, report

log = process.logger("feature_check")


def shares(impressions: pa.Table, folder: Path, source: str) -> tuple[int, dict[str, float]]:
    """The number of impressions whose features were read from the store, and each feature's share of equal values."""
    if not pc.any(pc.greater(impressions["read_ms"], 0)).as_py():
        return 0, {}
    from features.reproduction import reproduce
    from features.store import Features

    store = Features(folder, source)
    result = reproduce(store, impressions)
    if result["misses"]:
        log.info("%d values differ, by reason: %s; the first: %s", result["values"] - result["reproduced"],
                 result["why"], result["misses"][0])  # fmt: skip
    n, names = int(result["impressions"]), [f.name for f in store.plan.declaration.features]
    return n, {name: 1 - result["missed"].get(name, 0) / n for name in names}


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments(
        "training.pipeline.feature_check", "Compare logged features with the feature store's point-in-time join."
    )
    parser.shared("source", "archive", "begin", "end")
    parser.add_argument("--features", required=True, type=Path, metavar="DIR", help="the feature store's folder")
    docs_arguments(parser)
    args = parser.parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    interval = Interval.of(begin=args.begin, end=args.end)
    declaration = load(args.source).declaration
    impressions = Archive(args.archive, declaration).read("impressions", interval.begin_ms, interval.end_ms)
    if not impressions.num_rows:
        log.info("%s has no impressions: there is nothing to compare", interval)
        print(json.dumps({"impressions": 0, "compared": 0}))
        return
    compared, same = shares(impressions, args.features, args.source)
    log.info("%s: %d impressions, features of %d were read from the store", interval, impressions.num_rows, compared)
    for name, share in same.items():
        log.info("%s: %.4f %% of the values equal the join's", name, 100 * share)
    verdict = check([expectations.features(impressions, same, declaration)], args.docs / f"{interval.name}-features")
    facts = {"impressions": impressions.num_rows, "compared": compared, "same": same}
    report(verdict, str(interval), facts, log, args.docs_at)


if __name__ == "__main__":
    sys.exit(main())
