"""How one lineage takes over from another: when learning ends because it is at the head, or because SERVING moved.

A candidate (`online --lineage L --until-head`) learns from where its data ends to the topic's head, while the
served lineage goes on. Then SERVING moves, and the trainer that follows it writes a last delta of the old lineage and
begins anew in the new one. Each lineage has one writer at any time, so each learns every record once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from kafka.errors import KafkaError

from delta_log.log import Log
from training.learn.feed import Feed

SHORT_ROUND_S = 5.0
"""Of catching up: what came in a shorter time than this is left to who serves the lineage."""

log = logging.getLogger("trainer")


class Moved:
    """Whether another lineage is served than the one that is learned: looked at once a second; not `follow`: never."""

    def __init__(self, delta_log: Log, lineage: str, *, follow: bool) -> None:
        self._log, self._lineage, self._follow = delta_log, lineage, follow
        self._looked_at = time.monotonic()
        self.moved = False

    def __call__(self) -> bool:
        if self._follow and time.monotonic() - self._looked_at >= 1:
            self._looked_at = time.monotonic()
            self.moved = self._log.serving() not in (None, self._lineage)
        return self.moved


class AtHead:
    """Whether the topic is learned to its head: it moves on meanwhile, so a round that was short ends it."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._heads: Mapping[Any, int] | None = None
        self._began = 0.0
        self.reached = False

    def __call__(self) -> bool:
        try:
            if self._heads is None:
                self._began, self._heads = time.monotonic(), self._feed.heads()
            elif self._feed.passed(self._heads):
                self.reached, self._heads = time.monotonic() - self._began < SHORT_ROUND_S, None
        except KafkaError as e:
            log.info("kafka does not say where the topic ends: %s", e)
        return self.reached
