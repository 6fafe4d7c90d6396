"""The quality of predictions, test then train: figures of the judged task and of the value tasks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common import value
from common.auc import auc
from streaming.declaration import Declaration
from streaming.example import Batch

Floats = npt.NDArray[np.floating]


def logloss(logits: Floats, labels: Floats, weights: Floats) -> float:
    """Returns the mean of -log likelihood, from logits; NaN without an example."""
    total = float(weights.sum())
    each = np.logaddexp(0, logits.astype(np.float64)) - labels * logits
    return float((weights * each).sum() / total) if total else float("nan")


class Tested:
    """Collects the logits of the judged task and of the value tasks before each step, with labels and values."""

    def __init__(self, declaration: Declaration) -> None:
        self._judged = declaration.judged
        self._tasks = {task: declaration.tasks.index(task) for task in (declaration.judged, *declaration.values)}
        self._parts: dict[str, list[tuple[Floats, Floats, Floats, Floats]]] = {task: [] for task in self._tasks}

    def add(self, batch: Batch, logits: Floats) -> None:
        """Adds a batch with its logits float[n, tasks]. Negatives weigh 1 / pi: sampling changes no figure."""
        for name, task in self._tasks.items():
            at = np.flatnonzero(batch.weights[:, task] > 0)
            labels = batch.labels[at, task]
            weights = np.where(labels > 0, 1.0, 1 / batch.pi[at])
            self._parts[name].append((logits[at, task], labels, weights, batch.values[at, task]))

    def figures(self, last: int | None = None) -> dict[str, float]:
        """Returns the figures, if they are finite, of all that was added or of about the `last` examples.

        `auc` and `loss` are of the judged task. `<task>_mean`, `_calibration`, `_loss` and `_concordance` are those of
        a value task (common/value.py).
        """
        found: dict[str, float] = {}
        for task, parts in self._parts.items():
            if not parts:
                continue
            columns = (np.concatenate(column)[-(last or 0) :] for column in zip(*parts, strict=True))
            logits, labels, weights, values = columns
            if task == self._judged:
                found |= {"auc": auc(labels, logits, weights), "loss": logloss(logits, labels, weights)}
            else:
                scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
                of_task = value.figures(labels, values, scores, weights)
                found |= {f"{task}_{name}": figure for name, figure in of_task.items()}
        return {name: figure for name, figure in found.items() if np.isfinite(figure)}
