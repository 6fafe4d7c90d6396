"""One lineage takes over from another: the conditions that end the learning of a lineage.

`online.catch_up` learns a candidate from the end of its data to the topic's head, while the served lineage is still
learned. Then SERVING moves. The trainer, which follows it, writes a last delta of the old lineage and continues with
the new one. Each lineage has one writer at any time, so each learns every record once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from kafka.errors import KafkaError

from common import process
from delta_log.log import Log
from training.learn.feed import Feed

SHORT_ROUND_S = 5.0
"""A candidate stops catching up after a round that took less. The trainer that follows SERVING learns the rest."""

log = process.logger("trainer")


class Moved:
    """True as soon as SERVING names another lineage. It looks once a second."""

    def __init__(self, delta_log: Log, lineage: str) -> None:
        self._log, self._lineage = delta_log, lineage
        self._looked_at = time.monotonic()

    def __call__(self, feed: Feed) -> bool:
        if time.monotonic() - self._looked_at < 1:
            return False
        self._looked_at = time.monotonic()
        serving = self._log.serving()
        moved = serving not in (None, self._lineage)
        if moved:
            log.info("%s: no longer served, %s is: continues with it", self._lineage, serving)
        return moved


class AtHead:
    """True as soon as the topic is learned to its head. The head moves meanwhile, so the last round must be short."""

    def __init__(self) -> None:
        self._heads: Mapping[Any, int] | None = None
        self._began = 0.0
        self.reached = False

    def __call__(self, feed: Feed) -> bool:
        try:
            if self._heads is None:
                self._began, self._heads = time.monotonic(), feed.reader.heads()
            elif feed.reader.passed(self._heads):
                self.reached, self._heads = time.monotonic() - self._began < SHORT_ROUND_S, None
        except KafkaError as e:
            log.info("kafka does not report where the topic ends: %s", e)
        return self.reached
