"""Whether the features that were logged are those Feast held when they were read: the offline join, value by value.

    python -m training.pipeline.feature_check --source S --archive DIR --begin T --end T --features DIR --docs DIR

What was logged with the impression is training's truth; the join on arrival time must give the same for at least 99.9 %
of the values, or exit 2 names the feature. Impressions whose features no store was asked for (a source that brings its
own) are judged by themselves only.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from common.interval import Interval, milliseconds
from streaming.archive.archive import Archive, NotArchived
from streaming.source import load
from training.pipeline import expectations as contracts
from training.pipeline.validation import check, docs_arguments, report

log = logging.getLogger("feature_check")


def shares(shown: pa.Table, folder: Path, source: str) -> tuple[int, dict[str, float]]:
    """How many impressions had their features read from the store, and the share of each one's values that it says."""
    if not pc.any(pc.greater(shown["read_ms"], 0)).as_py():
        return 0, {}
    from features.reproduction import reproduce
    from features.store import Features

    store = Features(folder, source)
    found = reproduce(store, shown)
    if found["misses"]:
        log.info("%d values differ, why: %s; the first: %s", found["values"] - found["reproduced"], found["why"],
                 found["misses"][0])  # fmt: skip
    n, names = int(found["impressions"]), [f.name for f in store.plan.declaration.features]
    return n, {name: 1 - found["missed"].get(name, 0) / n for name in names}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "training.pipeline.feature_check",
        description="Compare logged features with the feature store's point-in-time join.",
    )
    parser.add_argument("--source", required=True, help="kuairand, simulator?seed=7, a module, or a path to a .py file")
    parser.add_argument(
        "--archive", required=True, type=Path, metavar="DIR", help="what streaming.archive.archiver wrote"
    )
    parser.add_argument("--begin", required=True, metavar="T", help="event time: ms, or 2022-05-07T06:00:00 (UTC)")
    parser.add_argument("--end", required=True, metavar="T", help="event time, not included")
    parser.add_argument("--features", required=True, type=Path, metavar="DIR", help="the feature store's folder")
    docs_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    try:
        interval = Interval(milliseconds("begin", args.begin), milliseconds("end", args.end))
        declaration = load(args.source).declaration
        shown = Archive(args.archive).read("impressions", interval.begin_ms, interval.end_ms)
        if not shown.num_rows:
            log.info("%s has no impressions: there is nothing to compare", interval)
            print(json.dumps({"impressions": 0, "compared": 0}))
            return 0
        compared, same = shares(shown, args.features, args.source)
    except (ValueError, NotArchived) as e:
        log.error("%s", e)
        return 2
    log.info("%s: %d impressions, features of %d were read from the store", interval, shown.num_rows, compared)
    for name, share in same.items():
        log.info("%s: %.4f %% of the values are the join's", name, 100 * share)
    verdict = check([contracts.features(shown, same, declaration)], args.docs / f"{interval.name}-features")
    facts = {"impressions": shown.num_rows, "compared": compared, "same": same}
    return report(verdict, str(interval), facts, log, args.docs_at)


if __name__ == "__main__":
    sys.exit(main())
