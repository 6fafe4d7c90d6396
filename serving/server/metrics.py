"""What the model server counts, under TensorFlow Serving's names, as Prometheus text."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter

BOUNDS = [10 * 1.8**i for i in range(33)]
"""Microseconds; TensorFlow Serving's own buckets."""


class Histogram:
    def __init__(self) -> None:
        self.counts, self.total = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        seen, out = 0, []
        for bound, count in zip([*(f"{b:g}" for b in BOUNDS), "+Inf"], self.counts, strict=True):
            seen += count
            out.append(f'{name}_bucket{{{labels},le="{bound}"}} {seen}')
        return [*out, f"{name}_sum{{{labels}}} {self.total:.0f}", f"{name}_count{{{labels}}} {seen}"]


class ServerMetrics:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._latency: dict[tuple[str, str], Histogram] = {}

    def add(self, model: str, entrypoint: str, status: str, microseconds: float) -> None:
        """One Predict of `model` that came by GRPC or REST and ended with `status`, a code's name."""
        with self._lock:
            self._requests[model, status] += 1
            if status == "OK":
                self._latency.setdefault((model, entrypoint), Histogram()).add(microseconds)

    def text(self) -> str:
        count, latency = ":tensorflow:serving:request_count", ":tensorflow:serving:request_latency"
        with self._lock:
            lines = [f"# TYPE {count} counter"]
            lines += [f'{count}{{model_name="{m}",status="{s}"}} {n}' for (m, s), n in sorted(self._requests.items())]
            lines.append(f"# TYPE {latency} histogram")
            for (model, entrypoint), histogram in sorted(self._latency.items()):
                labels = f'model_name="{model}",API="Predict",entrypoint="{entrypoint}"'
                lines += histogram.lines(latency, labels)
        return "\n".join(lines) + "\n"
