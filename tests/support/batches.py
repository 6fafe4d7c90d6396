"""Batches of examples made of arrays, for tests and benchmarks of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from streaming.example import Batch


def batch_of(
    features: dict[str, Any], labels: Any, weights: Any = 1, pi: Any = 1, position: Any = 0, values: Any = np.nan
) -> Batch:
    """A batch of `labels` [n, tasks]. The other arguments are arrays of their shape in a Batch, or one number."""
    labels = np.asarray(labels, np.float32)
    n = len(labels)
    zeros = np.zeros(n, np.int64)
    return Batch(
        impression_id=pa.array([f"i{k}" for k in range(n)], pa.string()),
        request_id=pa.array([""] * n, pa.string()),
        lineage=pa.array([""] * n, pa.string()),
        kind=np.full(n, "negative"),
        user_id=zeros,
        item_id=zeros,
        ts_ms=zeros,
        position=np.broadcast_to(np.asarray(position, np.int64), [n]),
        event_ms=zeros,
        written_ms=zeros,
        seq=zeros,
        pi=np.broadcast_to(np.asarray(pi, np.float64), [n]).copy(),
        labels=labels,
        weights=np.broadcast_to(np.asarray(weights, np.float32), labels.shape).copy(),
        scores=np.zeros(labels.shape, np.float32),
        values=np.broadcast_to(np.asarray(values, np.float64), labels.shape),
        line=np.arange(n),
        features=features,
    )
