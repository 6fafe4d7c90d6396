"""Which unknown ids get a row in a table: admission.h as a setting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Admission:
    """At its `after`-th sight (1 to 255) an id gets its row; or each sight gives it one with `probability`.

    `pending`: ids without a row whose sights are kept in mind at a time, 8 bytes each.
    """

    after: int = 1
    probability: float = 1.0
    pending: int = 1 << 20

    def shape(self, shards: int) -> str:
        """What the filter's lines mean: lines of one shape fit no filter of another. "" where all are admitted."""
        if self.after > 1:
            return f"count {shards}x{self.pending}"
        return f"probability {shards}" if self.probability < 1 else ""
