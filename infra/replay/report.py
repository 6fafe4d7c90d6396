"""The report of a replay: one table and one report.json, whose figures are counted, never estimated.

It is made of the replay's send log (each impression with its time, scores and outcomes), the delta log's manifests,
the sync's `sync.jsonl`, and the join's output in Kafka.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common import auc
from delta_log.manifest import Manifest
from infra.replay import tasks
from streaming.declaration import Declaration
from streaming.hashing import draw, learned_sum

Array = NDArray[Any]
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Sent:
    """The send log as columns, a row an impression. The scores of a failed prediction are NaN; no outcome is -1."""

    impression_id: list[str]
    user_id: Array
    item_id: Array
    ts_ms: Array
    wall_ms: Array
    predict_ms: Array
    ok: Array
    outcome_ms: Array  # int64[n, tasks]
    values: Array  # float64[n, tasks], NaN but for value tasks
    served: Array  # float64[n, tasks]
    frozen: Array  # float64[n, tasks]

    @classmethod
    def read(cls, folder: Path, declaration: Declaration) -> Sent:
        parts = sorted(folder.glob("impressions-*.parquet"))
        if not parts:
            raise FileNotFoundError(f"no impressions-*.parquet in {folder}: the replay sent nothing")
        table = pa.concat_tables([pq.read_table(p) for p in parts])

        def plain(name: str) -> Array:
            return np.asarray(table[name].to_numpy(zero_copy_only=False))

        def stack(prefix: str, fill: float, dtype: type) -> Array:
            nothing = pa.nulls(len(table), pa.float64())
            names = [f"{prefix}_{task}" for task in declaration.tasks]
            columns = [(table[name] if name in table.column_names else nothing).fill_null(fill) for name in names]
            return np.stack([np.asarray(c.to_numpy(zero_copy_only=False), dtype) for c in columns], axis=1)

        return cls(
            impression_id=table["impression_id"].to_pylist(),
            user_id=plain("user_id"),
            item_id=plain("item_id"),
            ts_ms=plain("ts_ms"),
            wall_ms=plain("wall_ms"),
            predict_ms=plain("predict_ms"),
            ok=plain("ok"),
            outcome_ms=stack("outcome", -1, np.int64),
            values=stack("value", float("nan"), np.float64),
            served=stack("served", float("nan"), np.float64),
            frozen=stack("frozen", float("nan"), np.float64),
        )


@dataclass(frozen=True)
class Pairs:
    """The pairs that the join must make of a send log whose events were sent in order (docs/example.md)."""

    positive: Array  # bool[n, tasks]
    late: Array
    negative: Array
    sampled_out: Array

    @classmethod
    def of(cls, sent: Sent, declaration: Declaration, pi: float, salt: str) -> Pairs:
        happened = sent.outcome_ms >= 0
        positive = happened & (sent.outcome_ms <= sent.ts_ms[:, None] + declaration.window_ms)
        sampled = (draw(sent.impression_id, salt) < pi)[:, None]
        return cls(positive, happened & ~positive, ~positive & sampled, ~positive & ~sampled)

    def keys(self, sent: Sent) -> Counter[tuple[str, int, int]]:
        expected: Counter[tuple[str, int, int]] = Counter()
        for label, which in ((1, self.positive), (0, self.negative)):
            for row, task in zip(*np.nonzero(which), strict=True):
                expected[sent.impression_id[row], int(task), label] += 1
        return expected

    def learned(self, sent: Sent) -> tuple[int, int]:
        """Count and sum that the newest manifest must hold once everything is learned."""
        total = 0
        for label, which in ((1, self.positive), (0, self.negative)):
            rows, tasks = np.nonzero(which)
            total += learned_sum([sent.impression_id[r] for r in rows], tasks, np.full(len(rows), label))
        return int(self.positive.sum() + self.negative.sum()), total % 2**64


def joined(bootstrap: str, topic: str, offsets: dict[str, int]) -> tuple[Counter[tuple[str, int, int]], int]:
    """The committed pairs of `topic` below `offsets`, and the number of their records."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False)
    pairs: Counter[tuple[str, int, int]] = Counter()
    records = 0
    try:
        ends = {TopicPartition(topic, int(p)): end for p, end in offsets.items()}
        consumer.assign(list(ends))
        consumer.seek_to_beginning(*ends)
        while any(consumer.position(p) < end for p, end in ends.items()):
            for partition, messages in consumer.poll(timeout_ms=500, max_records=5000).items():
                for message in messages:
                    if message.offset >= ends[partition]:
                        continue
                    record = json.loads(message.value)
                    if "heartbeat_ms" in record:
                        continue
                    records += 1
                    for task, weight in enumerate(record["weights"]):
                        if weight > 0:
                            pairs[record["impression_id"], task, int(record["labels"][task])] += 1
    finally:
        consumer.close()
    return pairs, records


def weighted_percentiles(histogram: dict[float, int], at: tuple[int, ...]) -> dict[str, float | None]:
    """Percentiles of a histogram (value -> count); None if it is empty."""
    values = np.array(sorted(histogram), float)
    if not len(values):
        return {f"p{p}": None for p in at}
    below = np.cumsum([histogram[v] for v in values])
    picks = [values[np.searchsorted(below, p / 100 * below[-1])] for p in at]
    return {f"p{p}": round(float(v), 3) for p, v in zip(at, picks, strict=True)}


def freshness(confirmed: list[dict[str, Any]], kind: str) -> dict[float, int]:
    """Seconds from an event's Kafka timestamp to its delta's confirmation -> how many events (docs/delta.md)."""
    histogram: Counter[float] = Counter()
    for line in confirmed:
        for written, count in line["written_ms"][kind].items():
            histogram[(line["confirmed_ms"] - int(written)) / 1000] += count
    return dict(histogram)


def compared(labels: Array, served: Array, frozen: Array, users: Array, seed: int) -> dict[str, float | None]:
    """The AUC of both scores and the interval of their difference, rounded; None where it is undefined."""
    figures = zip(("served", "frozen", "difference", "low", "high"), auc.compared(labels, served, frozen, users, seed),
                  strict=True)  # fmt: skip
    return {name: None if np.isnan(value) else round(value, 4) for name, value in figures}


POINTS = 12
"""The report shows how the difference grows at so many moments."""


def over_time(sent: Sent, rows: Array, labels: Array, judged: int, seed: int) -> list[dict[str, Any]]:
    """Compares both AUCs at POINTS moments, evenly spread in event time.

    A point is of all impressions so far, with the interval of the difference; `slice` is of those since the last point.

    `rows` are the places of the impressions in `sent`, and `labels` belong to them.
    """
    if not len(rows):
        return []
    order = np.argsort(sent.ts_ms[rows], kind="stable")  # the log has a row when the last of its outcomes was sent
    rows, labels = rows[order], labels[order]
    ts_ms, served, frozen = sent.ts_ms[rows], sent.served[rows, judged], sent.frozen[rows, judged]
    ends = np.searchsorted(ts_ms, np.linspace(ts_ms[0], ts_ms[-1], POINTS + 1)[1:], side="right")
    points, before = [], 0
    for end in ends.tolist():
        so_far, since = slice(0, end), slice(before, end)
        figures = compared(labels[so_far], served[so_far], frozen[so_far], sent.user_id[rows][so_far], seed)
        slice_of = tasks.both_aucs(labels[since], served[since], frozen[since])
        hours = round(float(ts_ms[max(end - 1, 0)] - ts_ms[0]) / HOUR_MS, 2)
        points.append({"hours": hours, "impressions": end, **figures, "slice": slice_of})
        before = end
    return points


def calibration(scores: Array, labels: Array) -> float | None:
    """Mean score / rate."""
    return round(float(scores.mean() / labels.mean()), 4) if labels.sum() else None


def build(
    sent: Sent,
    pairs: Pairs,
    declaration: Declaration,
    joined_pairs: Counter[tuple[str, int, int]],
    records: int,
    base: Manifest,
    newest: Manifest,
    confirmed: list[dict[str, Any]],
    about: dict[str, Any],
    refused: Mapping[str, int],
    items: Array,
) -> dict[str, Any]:
    """The report as plain data, for all that was learned between `base` and `newest`.

    `confirmed` are the lines of one replica's sync.jsonl, `refused` the records of the dead-letter and late topics,
    `items` the item ids that have a row in the base.
    """
    expected = pairs.keys(sent)
    # The base's pairs came from the history, not through the join.
    learned = newest.learned["count"] - base.learned["count"]
    learned_total = (int(newest.learned["sum"]) - int(base.learned["sum"])) % 2**64
    count, total = pairs.learned(sent)
    unlearned = joined_pairs.total() - learned
    judged = declaration.tasks.index(declaration.judged)
    later = (sent.ts_ms >= sent.ts_ms.min() + 2 * declaration.window_ms) & sent.ok
    labels = pairs.positive[later, judged].astype(int)
    served, frozen = sent.served[later, judged], sent.frozen[later, judged]
    rows = [line["rows"] for line in confirmed]
    size = [line["bytes"] for line in confirmed]
    new = ~np.isin(sent.item_id[later], items)
    return {
        **about,
        "events": int(len(sent.ts_ms) + (sent.outcome_ms >= 0).sum()),
        "records": records,
        "pairs": {
            "offered": int(pairs.positive.size),
            "learned_pos": sum(n for (_, _, label), n in joined_pairs.items() if label == 1),
            "learned_neg": sum(n for (_, _, label), n in joined_pairs.items() if label == 0),
            "sampled_out": int(pairs.sampled_out.sum()),
            "late": int(pairs.late.sum()),
            "lost": (expected - joined_pairs).total() + max(unlearned, 0),
            "double": (joined_pairs - expected).total() + max(-unlearned, 0),
        },
        "refused": dict(refused),
        "learned_equal": (learned, learned_total) == (count, total),
        "deltas": newest.seq - base.seq,
        "rows_per_delta": round(float(np.mean(rows)), 1) if rows else 0,
        "bytes_per_delta": round(float(np.mean(size)), 1) if size else 0,
        "freshness_s": weighted_percentiles(freshness(confirmed, "positive"), (50, 95, 99)),
        "freshness_negative_s": weighted_percentiles(freshness(confirmed, "negative"), (50, 95, 99)),
        "predictions": int(len(sent.ok)),
        "failed_predictions": int((~sent.ok).sum()),
        "predict_ms": {f"p{p}": round(float(np.percentile(sent.predict_ms[sent.ok], p)), 2) for p in (50, 99)},
        "auc": {"task": declaration.judged, **compared(labels, served, frozen, sent.user_id[later], about["seed"])},
        "rank_auc": tasks.rank_aucs(declaration, sent.served[later], sent.frozen[later], labels),
        "auc_over_time": over_time(sent, np.flatnonzero(later), labels, judged, about["seed"]),
        "auc_new_items": tasks.both_aucs(labels[new], served[new], frozen[new]),
        "calibration": calibration(served, labels),
        "calibration_frozen": calibration(frozen, labels),
        "tasks": tasks.figures(
            declaration, pairs.positive[later], sent.values[later], sent.served[later], sent.frozen[later]
        ),
        # None: after a kill, a replica was ahead before sync asked for its digest, which was then not compared.
        "digests_equal": {line["digests_equal"] for line in confirmed} - {None} == {True},
    }


def refusals_of(refused: Mapping[str, int]) -> tuple[int, int]:
    """The records in late topics, and in dead-letter topics."""
    late, dead = (sum(n for topic, n in refused.items() if topic.endswith(end)) for end in (".late", ".dead"))
    return late, dead


def markdown(report: dict[str, Any]) -> str:
    """The report as text: report.md, and the table at the end of a demo."""
    pairs, auc, age = report["pairs"], report["auc"], report["freshness_s"]
    new, rank = report["auc_new_items"], report["rank_auc"]

    def shown(value: float | None, digits: int = 4) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    rows = [
        ("source, commit, seed", f"{report['source']}, {report['commit']}, {report['seed']}"),
        (
            "sync_every, wall, set-up",
            f"{report['sync_every_s']:g} s, {report['wall_s']:.0f} s, {report['setup_s']:.0f} s",
        ),
        (
            "a delta each, in event time; the frozen copy's age at the end",
            f"{report['event_s_per_sync'] / 60:.1f} minutes; {report['frozen_age_days']:.1f} days",
        ),
        ("events in, examples out", f"{report['events']}, {report['records']}"),
        ("pairs offered", f"{pairs['offered']}"),
        ("... learned positive, negative", f"{pairs['learned_pos']}, {pairs['learned_neg']}"),
        ("... sampled out, late", f"{pairs['sampled_out']}, {pairs['late']}"),
        ("... lost, double", f"{pairs['lost']}, {pairs['double']}"),
        ("records refused as late, as dead letters", ", ".join(map(str, refusals_of(report["refused"])))),
        (
            "deltas; rows, kB a delta",
            f"{report['deltas']}; {report['rows_per_delta']:.0f}, {report['bytes_per_delta'] / 1000:.0f}",
        ),
        ("freshness p50, p95, p99 (s)", ", ".join(shown(age[p], 2) for p in ("p50", "p95", "p99"))),
        ("predictions, failed", f"{report['predictions']}, {report['failed_predictions']}"),
        ("predict p50, p99 (ms)", f"{report['predict_ms']['p50']:.1f}, {report['predict_ms']['p99']:.1f}"),
        (f"AUC of {auc['task']}: served, frozen", f"{shown(auc['served'])}, {shown(auc['frozen'])}"),
        ("... difference (95 % by user)", f"{shown(auc['difference'])} ({shown(auc['low'])} to {shown(auc['high'])})"),
        (
            f"... of the {new['impressions']} impressions of items that are new since the base",
            f"{shown(new['served'])}, {shown(new['frozen'])}",
        ),
        *(
            [(f"AUC of {rank['task']} by the rank score", f"{shown(rank['served'])}, {shown(rank['frozen'])}")]
            if rank
            else []
        ),
        (
            "calibration (mean score / rate): served, frozen",
            f"{shown(report['calibration'], 3)}, {shown(report['calibration_frozen'], 3)}",
        ),
        *(
            [
                (
                    f"AUC of the last day before the replay ({lost['impressions']}): base, served",
                    f"{shown(lost['base'])}, {shown(lost['served'])}",
                ),
                (
                    f"... forgotten (95 % by user; limit {lost['limit']:g})",
                    f"{shown(lost['forgotten'])} ({shown(lost['low'])} to {shown(lost['high'])})",
                ),
            ]
            if (lost := report["forgetting"])
            else []
        ),
        ("served digest == trained digest", "yes" if report["digests_equal"] else "NO"),
    ]
    lines = ["| figure | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    lines += tasks.table(report["tasks"])
    lines += ["", "| hours of event time | impressions so far | AUC served | AUC frozen | difference (95 % by user) |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {p['hours']:.1f} | {p['impressions']} | {shown(p['served'])} | {shown(p['frozen'])} |"
        f" {shown(p['difference'])} ({shown(p['low'])} to {shown(p['high'])}) |"
        for p in report["auc_over_time"]
    ]
    return "\n".join(lines) + "\n"
