"""The pace of a replay: its clock runs at a given speed, and slows down while the served model lags behind it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from common import process
from serving.client import PredictionFailed, Scorer
from serving.signatures import RANKER
from streaming.declaration import Declaration

ASK_EVERY_S = 0.5
ALLOWANCE_S = 2.0
SLOW = 0.1
"""The share of the full pace while the loop lags. Not 0: without events the trainer writes no delta, and the replicas
would never catch up."""

log = process.logger("replay")


class Replicas:
    """The lineage of each replica, and the event time it has learned. A thread asks their `status`."""

    def __init__(self, addresses: Sequence[str], declaration: Declaration, start_ms: int) -> None:
        self._scorer = Scorer(addresses, RANKER, declaration)
        self._learned_until_ms = [start_ms] * len(addresses)
        self._lineages = [""] * len(addresses)
        self._stopping = threading.Event()
        self._ask()
        self._thread = threading.Thread(target=self._watch, name="lag", daemon=True)
        self._thread.start()

    @property
    def learned_until_ms(self) -> int:
        """The event time of the slowest replica. A replica that does not answer counts with its last answer."""
        return min(self._learned_until_ms)

    def lineage(self, replica: int) -> str:
        return self._lineages[replica]

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._scorer.close()

    def _watch(self) -> None:
        while not self._stopping.wait(ASK_EVERY_S):
            self._ask()

    def _ask(self) -> None:
        for replica in range(len(self._lineages)):
            try:
                status = self._scorer.status(replica)
            except PredictionFailed:
                continue
            learned_until_ms = max(self._learned_until_ms[replica], int(status["learned_until_ms"]))
            self._learned_until_ms[replica], self._lineages[replica] = learned_until_ms, str(status["lineage"])


class Pace:
    """Moves a clock of event time on, at `speed` times wall time or slower."""

    def __init__(self, replicas: Replicas, speed: float, sync_every_s: float, max_disorder_ms: int) -> None:
        self.replicas, self.speed, self.throttled = replicas, speed, False
        self._sync_every_s = sync_every_s
        # A healthy loop is one sync behind, and the time that a delta takes. One sync more is a lag.
        self._limit_s = 2 * sync_every_s + ALLOWANCE_S + max_disorder_ms / 1000 / speed

    def lag_s(self, clock_ms: float) -> float:
        """The wall time since the clock passed the event time that the slowest replica has learned."""
        return max(0.0, (clock_ms - self.replicas.learned_until_ms) / 1000 / self.speed)

    def after(self, clock_ms: float, elapsed_s: float) -> float:
        """The clock after `elapsed_s` more of wall time."""
        lag_s = self.lag_s(clock_ms)
        if not self.throttled and lag_s > self._limit_s:
            self.throttled = True
            log.warning("the loop is %.1f s behind (one sync is %.1f s): slowing down", lag_s, self._sync_every_s)
        elif self.throttled and lag_s < self._limit_s / 2:
            self.throttled = False
            log.info("the loop has caught up (%.1f s behind): full pace again", lag_s)
        return clock_ms + 1000 * elapsed_s * self.speed * (SLOW if self.throttled else 1.0)
