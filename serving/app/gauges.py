"""The service's metrics, for GET /metrics (Prometheus)."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Gauges:
    """Requests by route and status, stages of a recommendation, events by topic and outcome."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "minutehand_app_requests", "requests", ("route", "status"), registry=self.registry
        )  # fmt: skip
        self._seconds = Histogram(
            "minutehand_app_seconds", "time of a request", ("route",), registry=self.registry, buckets=_SECONDS
        )
        self._stages = Histogram(
            "minutehand_app_stage_seconds", "time of a stage of a recommendation", ("stage",),
            registry=self.registry, buckets=_SECONDS,
        )  # fmt: skip
        self._events = Counter(
            "minutehand_app_events", "events that Kafka has, or that were refused", ("topic", "outcome"),
            registry=self.registry,
        )  # fmt: skip
        self.errors = Counter("minutehand_app_errors", "failed attempts to reach Kafka", registry=self.registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def stages(self, ms: Mapping[str, float]) -> None:
        for stage, value in ms.items():
            self._stages.labels(stage).observe(value / 1000)

    def event(self, topic: str, outcome: str, n: int = 1) -> None:
        self._events.labels(topic, outcome).inc(n)
