"""The metrics of a sync process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

FRESHNESS_S = (0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 30, 45, 60, 61, 62, 63, 65, 75, 90, 120, 300, 900, 3600)


class Metrics:
    """The metrics of one sync process; each has the label `model`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name, model = "minutehand_sync_", ["model"]
        self.seq = Gauge(name + "seq", "Newest delta that the replica serves", [*model, "lineage"], registry=registry)
        self.behind = Gauge(name + "behind", "Deltas in the log that the replica lacks", model, registry=registry)
        self.errors = Counter(name + "errors", "Refusals, by reason", [*model, "reason"], registry=registry)
        self.mismatches = Counter(name + "digest_mismatches", "Served digests that differ", model, registry=registry)
        self.journals = Counter(name + "journals", "Deltas added to journals", model, registry=registry)
        self.deltas = Counter(name + "deltas", "Deltas confirmed", model, registry=registry)
        self.rows = Counter(name + "rows", "Rows applied", model, registry=registry)
        self.bytes = Counter(name + "bytes", "Bytes of the deltas", model, registry=registry)
        self.apply = Histogram(
            name + "apply_seconds", "From reading a delta to its confirmation", model, registry=registry
        )
        self.freshness = Histogram(
            "minutehand_freshness_seconds", "From an event's Kafka timestamp to the delta's confirmation here",
            [*model, "kind"], buckets=FRESHNESS_S, registry=registry,
        )  # fmt: skip
