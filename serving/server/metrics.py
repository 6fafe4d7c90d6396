"""The metrics of the model server, under TensorFlow Serving's names, as Prometheus text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from serving.server.runtime.servable import request_error

REQUESTS, LATENCY = ":tensorflow:serving:request_count", ":tensorflow:serving:request_latency"
BUCKETS = [10 * 1.8**i for i in range(33)]
"""Microseconds; TensorFlow Serving's own buckets."""


class ServerMetrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # TensorFlow Serving has no such metrics
        self._registry = r = CollectorRegistry()
        self._requests = Counter(REQUESTS, "Calls of models", ["model_name", "status"], registry=r)
        about, labels = "Time of a call that succeeded, in microseconds", ["model_name", "API", "entrypoint"]
        self._known: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._latency = Histogram(LATENCY, about, labels, buckets=BUCKETS, registry=r)

    @contextmanager
    def predict(self, model: str, entrypoint: str, api: str = "Predict") -> Iterator[None]:
        """Counts the call of the block: its `api` is Predict, Classify, ..., its `entrypoint` GRPC or REST."""
        began = time.perf_counter()
        try:
            yield
        except Exception as e:
            self._requests.labels(model, request_error(e).code.name).inc()
            raise
        count, latency = self._of_call(model, entrypoint, api)
        count.inc()
        latency.observe((time.perf_counter() - began) * 1e6)

    def _of_call(self, model: str, entrypoint: str, api: str) -> tuple[Counter, Histogram]:
        """The metrics of calls that succeed. The library's own look-up takes longer than all else here."""
        key = (model, entrypoint, api)
        if key not in self._known:
            self._known[key] = self._requests.labels(model, "OK"), self._latency.labels(model, api, entrypoint)
        return self._known[key]

    def text(self) -> str:
        # The library adds _total to each counter's name; TensorFlow Serving does not.
        return generate_latest(self._registry).decode().replace(f"{REQUESTS}_total", REQUESTS)
