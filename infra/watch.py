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
from typing import Any, cast

import numpy as np
import pyarrow as pa
from kafka.errors import KafkaError
from numpy.typing import NDArray

from common import process
from common.errors import InputError
from infra.http_client import metrics
from infra.replay.live import read_lines
from infra.replay.report import freshness, refusals_of, weighted_percentiles
from infra.supervise import checks
from infra.tail import Refused, Tail
from serving.signatures import RANKER
from streaming.archive.archive import Archive, NotArchived
from streaming.declaration import Declaration
from streaming.source import load
from streaming.topics import ACTIONS, EXAMPLES, IMPRESSIONS

log = process.logger("watch")
Floats = NDArray[np.float64]
MOST_LAG = 10_000
MOST_BEHIND = 3
MOST_FEATURE_DRIFT = 1.0
"""Standard deviations. A feature may move with the world (a counter grows, a stock ages); a score should not."""
MOST_DEAD, MOST_LATE = 0, 0.1
SAMPLE = 20_000
"""So many records of each partition tell how many of them are heartbeats."""
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


@dataclass(frozen=True)
class Limits:
    """How much of the past is judged, and what is allowed: the arguments of the command."""

    minutes: float = 60
    calibration: float = 0.25
    drift: float = 0.25
    dead: int = MOST_DEAD
    late: float = MOST_LATE


def health(addresses: dict[str, str]) -> Iterator[Figure]:
    """The health that each process of the minute loop reports."""
    for name, url in addresses.items():
        if name == "kafka":
            host, _, port = url.rpartition(":")
            reason = checks.kafka(host.strip("[]"), int(port))()
        elif name == "join":
            reason = checks.flink_running(url)()
        elif name.endswith("-rest"):
            reason = checks.model_available(url, RANKER)()
        elif name.split("-")[0] in ("clock", "trainer", "sync", "archive", "features"):
            reason = checks.http_ok(f"{url}/healthz")()
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


@dataclass(frozen=True)
class Traffic:
    """What the topics got in the last minutes: events, those that were refused by topic, and whether examples came."""

    events: int
    refused: dict[str, int]
    examples: bool

    @classmethod
    def of(cls, kafka: str, since_ms: int, until_ms: int) -> Traffic:
        """Examples count until `until_ms`: the replicas may still lack those after it. Raises KafkaError."""
        with Refused(kafka, since_ms) as refused, Tail(kafka, (EXAMPLES,), since_ms) as examples:
            came = any(record.timestamp < until_ms and is_event(record.value) for _, record in examples.read())
            with Tail(kafka, (IMPRESSIONS, ACTIONS), since_ms, SAMPLE) as inputs:
                events = [is_event(record.value) for _, record in inputs.read()]
            # The records that were skipped count as those that were read.
            count = sum(events) * (1 + inputs.skipped / max(len(events), 1))
            return cls(round(count), refused.count(), came)


def is_event(message: bytes) -> bool:
    """False for a heartbeat."""
    return b'"heartbeat_ms"' not in message


def refusals(traffic: Traffic, most_dead: int, most_late: float) -> Iterator[Figure]:
    """The events that were not learned from: dead letters, and the share of those that came too late."""
    late, dead = refusals_of(traffic.refused)
    by_topic = ", ".join(f"{topic} {n}" for topic, n in traffic.refused.items()) or "none"
    yield Figure(f"dead letters ({by_topic})", float(dead), f"at most {most_dead}", dead <= most_dead)
    share = late / max(traffic.events, 1)
    yield Figure("share of events that came too late", share, f"at most {most_late:g}", share <= most_late)


def freshness_of(replica: Path, sync_every_s: float, minutes: float, now_ms: int, examples: bool) -> Figure:
    """p99 of the time from Kafka to the served model, over the actions of the last `minutes` of wall time.

    `examples`: whether some were written that this replica must have confirmed by now.
    """
    most, learned_until_ms, confirmed = 2 * sync_every_s + 10, -1, []
    for line in read_lines(replica / "sync.jsonl"):
        # A lineage that takes over brings deltas of event times that the lineage before it has served already.
        if line["learned_until_ms"] > learned_until_ms and line["confirmed_ms"] >= now_ms - minutes * 60_000:
            confirmed.append(line)
        learned_until_ms = max(learned_until_ms, line["learned_until_ms"])
    p99 = weighted_percentiles(freshness(confirmed, "positive"), (99,))["p99"]
    name = f"freshness p99 of {replica.parent.name}/{replica.name}, seconds"
    ok = p99 <= most if p99 is not None else bool(confirmed) or not examples
    return Figure(name, p99, f"at most {most:g} (2 x sync_every + 10)", ok)


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


def archived(archive: Archive, declaration: Declaration, limits: Limits) -> Iterator[Figure]:
    """Calibration and drift of the newest `minutes` of archived event time. Drift compares them with those before."""
    length = round(limits.minutes * 60_000)
    try:
        until = archive.until_ms("examples") + 1
        new = archive.read("examples", until - length, until)
        old = archive.read("examples", until - 2 * length, until - length)
    except (NotArchived, ValueError) as e:
        log.info("calibration and drift are not judged: %s", e)
        return
    yield calibration(new, declaration, limits.calibration)
    score = f"score_{declaration.judged}"
    yield drift(_floats(old[score]), _floats(new[score]), score, limits.drift)
    for f in (f for f in declaration.features if f.kind == "number"):
        name = f"feature_{f.name}"
        before = _floats(old[name])
        if not (before == np.float32(cast(float, f.default))).all():  # else nobody sent it, as before the source grew
            yield moved(before, _floats(new[name]), name, MOST_FEATURE_DRIFT)


def traffic_of(kafka: str, minutes: float, sync_every_s: float, now_ms: int) -> Traffic | None:
    """The traffic of the last minutes; None while no broker answers, which `health` reports."""
    since_ms, until_ms = now_ms - round(minutes * 60_000), now_ms - round((2 * sync_every_s + 10) * 1000)
    try:
        return Traffic.of(kafka, since_ms, until_ms)
    except KafkaError as e:
        log.info("dead and late records are not judged: %s", e)
        return None


def look(facts: dict[str, Any], limits: Limits) -> list[Figure]:
    """All figures of a platform, from its platform.json."""
    settings, folders, addresses = facts["settings"], facts["folders"], facts["addresses"]
    now_ms, sync_every_s = round(time.time() * 1000), float(settings["sync_every"])
    declaration = load(settings["source"]).declaration
    traffic = traffic_of(addresses["kafka"], limits.minutes, sync_every_s, now_ms) if "kafka" in addresses else None
    examples = traffic is not None and traffic.examples
    replicas = [
        Path(folders["models"]) / f"replica-{i}" / model
        for i in range(int(settings["replicas"]))
        for model in facts["models"]
    ]
    return [
        *health(addresses),
        *counts(addresses),
        *(refusals(traffic, limits.dead, limits.late) if traffic else ()),
        *(freshness_of(replica, sync_every_s, limits.minutes, now_ms, examples) for replica in replicas),
        *archived(Archive(folders["archive"], declaration), declaration, limits),
    ]


def _floats(column: Any) -> Floats:
    return np.asarray(column.to_numpy(), np.float64)


def watch(platform: Path, limits: Limits) -> None:
    """Prints the figures. Raises InputError, which names those that are not allowed."""
    try:
        figures = look(json.loads(platform.read_text()), limits)
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
    add("--dead", type=process.at_least(0), default=MOST_DEAD, help="the most dead letters (%(default)s)")
    add("--late", type=number, default=MOST_LATE, help="the most events that came too late, as a share (%(default)s)")
    args = parser.parse_args(argv)
    limits = Limits(args.minutes, args.calibration, args.drift, args.dead, args.late)
    return process.run(lambda: watch(args.platform, limits))


if __name__ == "__main__":
    sys.exit(main())
