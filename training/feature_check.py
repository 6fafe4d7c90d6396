"""Whether the features that were logged are those Feast held when they were read: the offline join, value by value.

    python -m training.feature_check --source S --archive DIR --begin T --end T --features DIR --docs DIR

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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.archive import Archive, NotArchived
from streaming.declaration import Declaration
from streaming.interval import Interval, milliseconds
from streaming.source import load
from training import contracts
from training.validation import check, report

log = logging.getLogger("feature_check")


def same(logged: pa.Table, joined: pa.Table, declaration: Declaration) -> dict[str, Any]:
    """Feature -> bool[n]: the value logged is the value joined, numbers as float32."""
    if joined.num_rows != logged.num_rows:
        raise ValueError(f"the join has {joined.num_rows} rows, expected are the {logged.num_rows} that were logged")
    found: dict[str, Any] = {}
    for f in declaration.features:
        ours, theirs = logged[f"feature_{f.name}"], joined[f.name]
        if f.kind == "ids":
            pairs = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
            found[f.name] = np.fromiter((list(a or ()) == list(b or ()) for a, b in pairs), bool, logged.num_rows)
        elif f.kind == "number":
            a, b = (np.asarray(c.to_numpy(), np.float32) for c in (ours, theirs))
            found[f.name] = np.isclose(a, b, rtol=1e-6, atol=1e-6)
        else:
            found[f.name] = pc.fill_null(pc.equal(ours, theirs), False).to_numpy()
    return found


def compare(logged: pa.Table, folder: Path, source: str, declaration: Declaration) -> tuple[pa.Table, dict[str, Any]]:
    """The impressions whose features were read from the store, and for each feature where it is the same."""
    if "read_ms" not in logged.schema.names:
        return logged, {}
    read = logged.filter(pc.greater(pc.fill_null(logged["read_ms"], 0), 0))
    if not read.num_rows:
        return logged, {}
    from streaming.feature_store import Features

    plain = {f.name: read[f"feature_{f.name}"] for f in declaration.features}
    asked = pa.table({name: read[name] for name in ("user_id", "item_id", "ts_ms", "read_ms")} | plain)
    return read, same(read, Features(folder, source).historical(asked), declaration)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "training.feature_check", description="Compare logged features with the feature store's point-in-time join."
    )
    parser.add_argument("--source", required=True, help="kuairand, simulator?seed=7, a module, or a path to a .py file")
    parser.add_argument("--archive", required=True, type=Path, metavar="DIR", help="what streaming.archive wrote")
    parser.add_argument("--begin", required=True, metavar="T", help="event time: ms, or 2022-05-07T06:00:00 (UTC)")
    parser.add_argument("--end", required=True, metavar="T", help="event time, not included")
    parser.add_argument("--features", required=True, type=Path, metavar="DIR", help="the feature store's folder")
    parser.add_argument("--docs", required=True, type=Path, metavar="DIR", help="where Data Docs go")
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
        judged, equal = compare(shown, args.features, args.source, declaration)
    except (ValueError, NotArchived) as e:
        log.error("%s", e)
        return 2
    compared = judged.num_rows if equal else 0
    log.info("%s: %d impressions, features of %d were read from the store", interval, shown.num_rows, compared)
    for name, values in equal.items():
        log.info("%s: %.4f %% of the values are the join's", name, 100 * float(np.mean(values)))
    verdict = check([contracts.features(judged, equal, declaration)], args.docs / f"{interval.name}-features")
    shares = {name: float(np.mean(values)) for name, values in equal.items()}
    return report(verdict, str(interval), {"impressions": shown.num_rows, "compared": compared, "same": shares}, log)


if __name__ == "__main__":
    sys.exit(main())
