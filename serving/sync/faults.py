"""The reasons why a model of a replica does not follow its delta log."""

from __future__ import annotations

from prometheus_client import Counter

from common import process

logger = process.logger("sync")


class Faults:
    """The faults of one model, by reason. Each is logged when it begins and when it ends."""

    def __init__(self, errors: Counter, model: str) -> None:
        self._errors, self._model = errors, model
        self._texts: dict[str, str] = {}

    def report(self, reason: str, text: str) -> None:
        """Records a fault: `reason` is a short constant (a metric's label), `text` the whole message; "" ends it."""
        if not text:
            self.clear(reason)
        elif self._texts.get(reason) != text:
            self._texts[reason] = text
            logger.error("%s: %s", reason, text)
            self._errors.labels(self._model, reason).inc()

    def clear(self, *reasons: str) -> None:
        """Ends the faults of these reasons."""
        for reason in reasons:
            if self._texts.pop(reason, None) is not None:
                logger.info("%s: over", reason)

    def text(self) -> str:
        """All faults in one line; "" without one."""
        return "; ".join(f"{reason}: {text}" for reason, text in self._texts.items())
