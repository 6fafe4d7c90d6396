"""An answer other than success: its HTTP status, and the one sentence that tells a person what is wrong."""

from __future__ import annotations


class Problem(Exception):
    """A request, or one event of it, that the service does not take."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
