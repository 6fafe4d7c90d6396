"""The quality of predictions, test then train: AUC and log loss of weighted examples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.auc import auc
from streaming.example import Batch

Floats = npt.NDArray[np.floating]


def logloss(logits: Floats, labels: Floats, weights: Floats) -> float:
    """Returns the mean of -log likelihood, from logits; NaN without an example."""
    total = float(weights.sum())
    each = np.logaddexp(0, logits.astype(np.float64)) - labels * logits
    return float((weights * each).sum() / total) if total else float("nan")


class Tested:
    """Collects the judged task's logits before each step, with the labels."""

    def __init__(self, task: int) -> None:
        self._task = task
        self._parts: list[tuple[Floats, Floats, Floats]] = []

    def add(self, batch: Batch, logits: Floats) -> None:
        """Adds a batch with its logits float[n, tasks]. Negatives weigh 1 / pi: sampling changes no figure."""
        at = np.flatnonzero(batch.weights[:, self._task] > 0)
        labels = batch.labels[at, self._task]
        self._parts.append((logits[at, self._task], labels, np.where(labels > 0, 1.0, 1 / batch.pi[at])))

    def figures(self, last: int | None = None) -> dict[str, float]:
        """Returns `auc` and `loss`, if they are finite, of all that was added or of about the `last` examples."""
        if not self._parts:
            return {}
        logits, labels, weights = (np.concatenate([p[i] for p in self._parts])[-(last or 0) :] for i in range(3))
        figures = {"auc": auc(labels, logits, weights), "loss": logloss(logits, labels, weights)}
        return {name: value for name, value in figures.items() if np.isfinite(value)}
