"""Scores a replay's exposures as an app would: one request for each user, to the served and to the frozen model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from common import process
from serving.client import DEADLINE_S, PredictionFailed, Scorer
from streaming.source import Exposure

if TYPE_CHECKING:
    from features.store import Features

log = process.logger("replay")


class Prediction(NamedTuple):
    """One model's scores of one exposure. They are empty if the prediction failed."""

    scores: dict[str, float]
    seq: int
    ms: float


FAILED = Prediction({}, -1, 1000 * DEADLINE_S)


class Shown(NamedTuple):
    """An exposure with its place in a request, both predictions, and when its features were read (0: not read)."""

    exposure: Exposure
    request_id: str
    position: int
    served: Prediction
    frozen: Prediction
    read_ms: int


def requests(exposures: Sequence[Exposure]) -> list[list[int]]:
    """The places of each user's exposures, users in the order of their first exposure. Each list is one request."""
    by_user: dict[int, list[int]] = {}
    for place, exposure in enumerate(exposures):
        by_user.setdefault(exposure.user_id, []).append(place)
    return list(by_user.values())


class Scoring:
    """Asks both models at once. `features` replaces the source's features by those of the feature store."""

    def __init__(self, served: Scorer, frozen: Scorer | None, features: Features | None) -> None:
        self.served, self._frozen, self._features = served, frozen, features
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="score")

    def close(self) -> None:
        self._pool.shutdown()

    def show(self, exposures: Sequence[Exposure]) -> list[Shown]:
        """Scores exposures. A request without an answer within the deadline leaves its exposures without scores."""
        exposures, calls = list(exposures), requests(exposures)
        read_ms = [self._read(exposures, call) for call in calls]
        served, frozen = self._pool.map(lambda s: _predict(s, exposures, calls), (self.served, self._frozen))
        shown = {
            place: Shown(exposures[place], exposures[call[0]].impression_id, position, served[place], frozen[place], ms)
            for call, ms in zip(calls, read_ms, strict=True)
            for position, place in enumerate(call)
        }
        return [shown[place] for place in range(len(exposures))]

    def _read(self, exposures: list[Exposure], call: Sequence[int]) -> int:
        """Puts the feature store's values into the exposures of one request. Returns when they were read."""
        if self._features is None:
            return 0
        asked = [exposures[place] for place in call]
        rows, at_ms = self._features.read(
            asked[0].user_id, [e.item_id for e in asked], [e.ts_ms for e in asked], [e.features for e in asked]
        )
        for place, row in zip(call, rows, strict=True):
            exposures[place] = exposures[place]._replace(features=row)
        return at_ms


def _predict(scorer: Scorer | None, exposures: Sequence[Exposure], calls: Sequence[Sequence[int]]) -> list[Prediction]:
    predictions = [FAILED] * len(exposures)
    if scorer is None:
        return predictions
    for call in calls:
        begun = time.perf_counter()
        try:
            tasks, seq = scorer.score([exposures[place].features for place in call])
        except PredictionFailed as e:
            log.warning("prediction failed: %s", e)
            continue
        ms = 1000 * (time.perf_counter() - begun)
        for row, place in enumerate(call):
            predictions[place] = Prediction({task: values[row] for task, values in tasks.items()}, seq, ms)
    return predictions
