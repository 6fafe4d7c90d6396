"""Watches forgetting: after a replay, the served model and its base score the last day before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common import auc
from serving.client import Scorer
from serving.signatures import FROZEN, RANKER
from streaming.declaration import Declaration
from streaming.source import Exposure

LIMIT = 0.002
"""The served model's AUC may be lower than the base's by this."""
ROWS = 1024
"""Exposures of one request."""
TIMEOUT_S = 30.0


def forgetting(
    exposures: Sequence[Exposure], addresses: Sequence[str], declaration: Declaration, seed: int
) -> dict[str, Any] | None:
    """Scores `exposures`, which the base has learned, by both models: AUC of the judged task, base - served.

    None without exposures, or if all labels are equal. The interval is the paired bootstrap by user.
    """
    task = declaration.judged
    labels = np.array([_happened(e, task, declaration.window_ms) for e in exposures], np.int64)
    if not 0 < labels.sum() < len(labels):
        return None
    base, served = (_scores(name, exposures, addresses, declaration) for name in (FROZEN, RANKER))
    users = np.array([e.user_id for e in exposures], np.int64)
    first, second, difference, low, high = auc.compared(labels, base, served, users, seed)
    figures = {"base": first, "served": second, "forgotten": difference, "low": low, "high": high}
    rounded = {name: round(value, 4) for name, value in figures.items()}
    return {"task": task, "impressions": len(labels), **rounded, "limit": LIMIT, "reached": difference <= LIMIT}


def _happened(exposure: Exposure, task: str, window_ms: int) -> bool:
    return exposure.outcomes.get(task, exposure.ts_ms + window_ms + 1) <= exposure.ts_ms + window_ms


def _scores(
    model: str, exposures: Sequence[Exposure], addresses: Sequence[str], declaration: Declaration
) -> list[float]:
    scorer = Scorer(addresses, model, declaration, TIMEOUT_S)
    scores: list[float] = []
    for start in range(0, len(exposures), ROWS):
        answer, _ = scorer.score([e.features for e in exposures[start : start + ROWS]])
        scores += answer[declaration.judged]
    scorer.close()
    return scores
