"""The metrics of the model server, under TensorFlow Serving's names, as Prometheus text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

REQUESTS, LATENCY = ":tensorflow:serving:request_count", ":tensorflow:serving:request_latency"
BUCKETS = [10 * 1.8**i for i in range(33)]
"""Microseconds; TensorFlow Serving's own buckets."""


class ServerMetrics:
    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # TensorFlow Serving has no such series
        self._registry = r = CollectorRegistry()
        self._requests = Counter(REQUESTS, "Predict calls", ["model_name", "status"], registry=r)
        self._latency = Histogram(
            LATENCY,
            "Time of a Predict call that succeeded, in microseconds",
            ["model_name", "API", "entrypoint"],
            buckets=BUCKETS,
            registry=r,
        )

    def add(self, model: str, entrypoint: str, status: str, microseconds: float) -> None:
        """Counts one Predict of `model` that came by GRPC or REST and ended with `status`, a code's name."""
        self._requests.labels(model, status).inc()
        if status == "OK":
            self._latency.labels(model, "Predict", entrypoint).observe(microseconds)

    def text(self) -> str:
        # The library ends each counter's name with _total; TensorFlow Serving does not.
        return generate_latest(self._registry).decode().replace(f"{REQUESTS}_total", REQUESTS)
