"""Compares the features of an archive's impressions with the offline point-in-time join of the feature store.

    python -m features.reproduction --source simulator --features var/local/features --archive var/local/archive

It compares each logged value with the value that was readable at `read_ms`. It explains a difference by the rows around
it, if they can. `unfinished`: the row before the newest one was served, so a write was logged and its process died
before the row was readable. `ahead`: the row after it was served. The module prints one JSON object. The exit code is 1
if the share of equal values is below `--least`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common import process
from common.interval import milliseconds
from features.adds import AddLog
from features.counted import ENTITY
from features.profile.store import Profiles
from features.store import Features
from streaming.archive.archive import Archive
from streaming.topics import IMPRESSIONS

LEAST = 0.999


def reproduce(store: Features, impressions: pa.Table) -> dict[str, Any]:
    """Compares impressions of an archive's table whose features were read from the store.

    Those of users that were forgotten since are left out. Returns impressions, forgotten (how many are left out),
    values, reproduced, share, missed (feature -> values), why (reason -> values), misses ([impression_id, feature,
    served, joined, why], the first 100).
    """
    names = [f.name for f in store.plan.declaration.features]
    read = impressions.filter(pc.greater(impressions["read_ms"], 0))
    requests = read.filter(pa.array(_remembered(store, read)))
    served = requests.select([f"feature_{name}" for name in names]).rename_columns(names).to_pylist()
    joined = store.historical(requests).to_pylist() if requests.num_rows else []
    wrong = {}
    for k, (was, now) in enumerate(zip(served, joined, strict=True)):
        differing = [name for name in names if not _same(was[name], now[name])]
        if differing:
            wrong[k] = differing
    why = _explain(store, requests, wrong, served)
    misses = [
        [requests["impression_id"][k].as_py(), name, served[k][name], joined[k][name], why[k, name]]
        for k, differing in wrong.items()
        for name in differing
    ]
    values = len(served) * len(names)
    return {
        "impressions": len(served),
        "forgotten": len(read) - len(served),
        "values": values,
        "reproduced": values - len(misses),
        "share": 1 - len(misses) / values if values else 1.0,
        "missed": dict(Counter(name for _, name in why)),
        "why": dict(Counter(why.values())),
        "misses": misses[:100],
    }


def _remembered(store: Features, impressions: pa.Table) -> list[bool]:
    """Whether the store still has what it knew of each impression's user."""
    with Profiles(store.folder, store.plan.slots) as profiles:
        until = profiles.forgotten("user")
    pairs = zip(impressions["user_id"].to_pylist(), impressions["ts_ms"].to_pylist(), strict=True)
    return [ts_ms > until.get(user, -1) for user, ts_ms in pairs]


def _explain(
    store: Features, requests: pa.Table, wrong: dict[int, list[str]], served: list[dict[str, Any]]
) -> dict[tuple[int, str], str]:
    """Finds which neighbouring version of a row's views was served: (row, feature) -> reason."""
    reasons = {(k, name): "unexplained" for k, differing in wrong.items() for name in differing}
    if not reasons:
        return reasons
    rows = requests.take(pa.array(list(wrong)))
    users, items, read_ms = (rows[name].to_numpy() for name in ("user_id", "item_id", "read_ms"))
    around: dict[str, list[int]] = {"unfinished": [], "ahead": []}
    arrivals = {view: store.offline.arrivals(view) for view in store.plan.columns if view not in ENTITY}
    commits = AddLog(store.folder, store.plan.slots).commits()[0]
    for user, item, at_ms in zip(users, items, read_ms, strict=True):
        of_keys = [
            times.get(user if store.plan.key(view) == store.plan.user_key else item, _NONE)
            for view, times in arrivals.items()
        ]
        near = np.sort(np.concatenate([*of_keys, commits]))
        place = int(np.searchsorted(near, at_ms, side="right"))
        around["unfinished"].append(int(near[place - 1]) - 1 if place else int(at_ms))
        around["ahead"].append(int(near[place]) if place < len(near) else int(at_ms))
    for reason, at in around.items():
        column = rows.schema.get_field_index("read_ms")
        joined = store.historical(rows.set_column(column, "read_ms", pa.array(at, pa.int64()))).to_pylist()
        for (k, differing), now in zip(wrong.items(), joined, strict=True):
            for name in differing:
                if reasons[k, name] == "unexplained" and _same(served[k][name], now[name]):
                    reasons[k, name] = reason
    return reasons


_NONE = np.zeros(0, np.int64)


def _same(served: Any, joined: Any) -> bool:
    """Compares two values; numbers as float32, as the archive keeps them."""
    if isinstance(served, float):
        return bool(np.float32(served) == np.float32(joined))
    return bool(served == joined)


def main(argv: Sequence[str] | None = None) -> int:
    parser = process.Arguments("features.reproduction", __doc__)
    add = parser.add_argument
    parser.shared("source")
    add("--features", required=True, type=Path, metavar="DIR", help="the feature folder")
    parser.shared("archive")
    parser.shared("begin", "end", required=False)
    add("--least", type=float, default=LEAST, help="share of the values that must be reproduced (%(default)s)")
    args = parser.parse_args(argv)
    return process.run(lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    store = Features(args.features, args.source)
    archive = Archive(args.archive, store.plan.declaration)
    begin_ms = milliseconds("begin", args.begin) if args.begin else archive.since_ms(IMPRESSIONS)
    end_ms = milliseconds("end", args.end) if args.end else archive.until_ms(IMPRESSIONS) + 1
    figures = reproduce(store, archive.read(IMPRESSIONS, begin_ms, end_ms))
    print(json.dumps(figures, indent=1))
    return process.DONE if figures["share"] >= args.least else process.FAILED


if __name__ == "__main__":
    sys.exit(main())
