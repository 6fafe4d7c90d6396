"""Settings of the admission filter, which decides when an unknown id gets a row (core/admission.h)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Admission:
    """Settings of a table's admission: an id gets its row at its `after`-th sight (1 to 255).

    Or each sight gives it one with `probability`. `pending` is the number of ids without a row whose sights the filter
    remembers, at 8 bytes each.
    """

    after: int = 1
    probability: float = 1.0
    pending: int = 1 << 20

    def shape(self, shards: int) -> str:
        """Names the format of the filter's lines: they fit a filter of this shape only. "" if every id is admitted."""
        if self.after > 1:
            return f"count {shards}x{self.pending}"
        return f"probability {shards}" if self.probability < 1 else ""
