"""Judges a running platform: health, lag, freshness, calibration and drift, each against its limit.

    python -m infra.watch --platform var/local/platform.json

Prints all figures as JSON. Exits with 2 if one is not allowed; the last line of the log names each of these.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common import process
from common.errors import InputError
from infra.http_client import metrics
from infra.replay.live import read_lines
from infra.replay.report import freshness, weighted_percentiles
from infra.supervise import checks
from serving.signatures import RANKER
from streaming.archive.archive import Archive, NotArchived
from streaming.declaration import Declaration
from streaming.source import load

log = process.logger("watch")
Floats = NDArray[np.float64]
MOST_LAG = 10_000
MOST_BEHIND = 3
MOST_FEATURE_DRIFT = 1.0
"""Standard deviations. A feature may move with the world (a counter grows, a stock ages); a score should not."""
LEAST_POSITIVES, LEAST_ROWS, BINS, QUANTILES = 100, 500, 10, 101
"""A figure of fewer positives or rows is mostly chance. It is not judged."""


@dataclass(frozen=True)
class Figure:
    """A figure, its limit, and the verdict. `seen` is the value, or None if there are too few data."""

    name: str
    seen: float | str | None
    allowed: str
    ok: bool

    def __str__(self) -> str:
        seen = f"{self.seen:.6g}" if isinstance(self.seen, float) else self.seen
        return f"{self.name}: seen is {'nothing yet' if seen is None else seen}, allowed is {self.allowed}"


def health(addresses: dict[str, str]) -> Iterator[Figure]:
    """The health that each process reports."""
    for name, url in addresses.items():
        if name.split("-")[0] in ("trainer", "sync", "archive", "features"):
            reason = checks.http_ok(f"{url}/healthz")()
        elif name.endswith("-rest"):
            reason = checks.model_available(url, RANKER)()
        else:
            continue
        yield Figure(f"health of {name}", reason or "ready", "ready", not reason)


def counts(addresses: dict[str, str]) -> Iterator[Figure]:
    """The counts of trainer, sync and archiver: records and deltas that wait, and digests that differ."""
    limits = {
        "minutehand_trainer_lag_records": MOST_LAG,
        "minutehand_archive_lag_records": MOST_LAG,
        "minutehand_sync_behind": MOST_BEHIND,
        "minutehand_sync_digest_mismatches_total": 0,
    }
    for name, url in addresses.items():
        if name.split("-")[0] in ("trainer", "sync", "archive"):
            for metric, value in metrics(url).items():
                if metric in limits:
                    most = limits[metric]
                    yield Figure(f"{metric} of {name}", value, f"at most {most}", value <= most)


def freshness_of(replica: Path, sync_every_s: float, minutes: float, now_ms: int) -> Figure:
    """p99 of the time from Kafka to the served model, over the actions of the last `minutes` of wall time."""
    most, learned_until_ms, confirmed = 2 * sync_every_s + 10, -1, []
    for line in read_lines(replica / "sync.jsonl"):
        # A lineage that takes over brings deltas of event times that the lineage before it has served already.
        if line["learned_until_ms"] > learned_until_ms and line["confirmed_ms"] >= now_ms - minutes * 60_000:
            confirmed.append(line)
        learned_until_ms = max(learned_until_ms, line["learned_until_ms"])
    p99 = weighted_percentiles(freshness(confirmed, "positive"), (99,))["p99"]
    name = f"freshness p99 of {replica.parent.name}/{replica.name}, seconds"
    return Figure(name, p99, f"at most {most:g} (2 x sync_every + 10)", p99 is None or p99 <= most)


def calibration(table: pa.Table, declaration: Declaration, room: float) -> Figure:
    """Mean score as served / rate, of the judged task. A negative that was kept with probability pi counts 1 / pi."""
    task = declaration.judged
    score = _floats(table[f"score_{task}"])
    use = (_floats(table[f"weight_{task}"]) > 0) & np.isfinite(score)
    label, pi = _floats(table[f"label_{task}"])[use], _floats(table["pi"])[use]
    weight = np.where(label > 0, 1.0, 1 / pi)
    name, positives = f"calibration of {task}, mean score / rate", int(label.sum())
    if positives < LEAST_POSITIVES:
        return Figure(name, None, f"judged from {LEAST_POSITIVES} positives on", True)
    ratio = float((weight * score[use]).sum() / label.sum())
    chance = 4 / positives**0.5
    return Figure(name, ratio, f"1 +- {room + chance:.3g}", abs(ratio - 1) <= room + chance)


def drift(old: Floats, new: Floats, name: str, most: float) -> Figure:
    """The population stability index of a score: sum (q - p) log (q / p) over the tenths of the old values."""
    old, new = old[np.isfinite(old)], new[np.isfinite(new)]
    name = f"drift of {name}, stability index"
    if min(len(old), len(new)) < LEAST_ROWS:
        return Figure(name, None, f"judged from {LEAST_ROWS} values on", True)
    edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1]))
    p, q = (np.bincount(np.searchsorted(edges, v, "right"), minlength=len(edges) + 1) + 0.5 for v in (old, new))
    p, q = p / p.sum(), q / q.sum()
    index = float(((q - p) * np.log(q / p)).sum())
    return Figure(name, index, f"at most {most:g}", index <= most)


def moved(old: Floats, new: Floats, name: str, most: float) -> Figure:
    """How far a feature's values moved: the mean distance of their quantiles, in standard deviations.

    The stability index would not do: ages of videos that came out on the same days are a few narrow heaps. Each heap
    leaves its tenth within the hour, and yet no model would notice that.
    """
    old, new = old[np.isfinite(old)], new[np.isfinite(new)]
    name = f"drift of {name}, standard deviations"
    if min(len(old), len(new)) < LEAST_ROWS:
        return Figure(name, None, f"judged from {LEAST_ROWS} values on", True)
    at = np.linspace(0, 1, QUANTILES)
    distance = float(np.abs(np.quantile(old, at) - np.quantile(new, at)).mean())
    deviations = distance / float(max(old.std(), np.finfo(np.float32).eps)) if distance else 0.0
    return Figure(name, deviations, f"at most {most:g}", deviations <= most)


def archived(
    archive: Archive, declaration: Declaration, minutes: float, room: float, most_drift: float
) -> Iterator[Figure]:
    """Calibration and drift of the newest `minutes` of archived event time. Drift compares them with those before."""
    until, length = archive.until_ms("examples") + 1, round(minutes * 60_000)
    try:
        new = archive.read("examples", until - length, until)
        old = archive.read("examples", until - 2 * length, until - length)
    except (NotArchived, ValueError) as e:
        log.info("calibration and drift are not judged: %s", e)
        return
    yield calibration(new, declaration, room)
    score = f"score_{declaration.judged}"
    yield drift(_floats(old[score]), _floats(new[score]), score, most_drift)
    for name in (f"feature_{f.name}" for f in declaration.features if f.kind == "number"):
        yield moved(_floats(old[name]), _floats(new[name]), name, MOST_FEATURE_DRIFT)


def look(facts: dict[str, Any], minutes: float, room: float, most_drift: float) -> list[Figure]:
    """All figures of a platform, from its platform.json."""
    settings, folders, addresses = facts["settings"], facts["folders"], facts["addresses"]
    now_ms = round(time.time() * 1000)
    replicas = [
        Path(folders["models"]) / f"replica-{i}" / model
        for i in range(int(settings["replicas"]))
        for model in facts["models"]
    ]
    return [
        *health(addresses),
        *counts(addresses),
        *(freshness_of(replica, float(settings["sync_every"]), minutes, now_ms) for replica in replicas),
        *archived(Archive(folders["archive"]), load(settings["source"]).declaration, minutes, room, most_drift),
    ]


def _floats(column: Any) -> Floats:
    return np.asarray(column.to_numpy(), np.float64)


def watch(platform: Path, minutes: float, room: float, most_drift: float) -> None:
    """Prints the figures. Raises InputError, which names those that are not allowed."""
    try:
        figures = look(json.loads(platform.read_text()), minutes, room, most_drift)
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"--platform is {platform}, which cannot be read: {e}") from e
    for figure in figures:
        log.info("%s%s", "" if figure.ok else "NOT ALLOWED: ", figure)
    print(json.dumps({"figures": [asdict(figure) for figure in figures]}))
    if wrong := [str(figure) for figure in figures if not figure.ok]:
        raise InputError("; ".join(wrong))


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("infra.watch", __doc__ or "")
    add, number = parser.add_argument, process.at_least(0.0)
    add("--platform", required=True, type=Path, metavar="FILE", help="the platform's platform.json")
    add("--minutes", type=number, default=60, help="judge the newest so many (default: %(default)s)")
    add("--calibration", type=number, default=0.25, help="allowed is a score / rate of 1 +- this (%(default)s)")
    add("--drift", type=number, default=0.25, help="the most stability index of the score (%(default)s)")
    args = parser.parse_args(argv)
    return process.run(lambda: watch(args.platform, args.minutes, args.calibration, args.drift))


if __name__ == "__main__":
    sys.exit(main())
