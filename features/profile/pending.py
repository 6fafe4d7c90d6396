"""Pending impressions: what a commit keeps of impressions whose window is open, as one blob a commit.

A blob: CRC-32C | n | n times (closes_ms, bytes of the id, bytes of the data), all int64 | all ids | all data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from features.profile.rows import seal, unsealed

Pending = tuple[str, int, bytes]
"""impression_id, closes_ms, data"""


def pack(rows: Sequence[Pending]) -> bytes:
    ids = [row[0].encode() for row in rows]
    data = [row[2] for row in rows]
    head = np.array([[row[1] for row in rows], [len(i) for i in ids], [len(d) for d in data]], "<i8")
    return seal(b"".join([len(rows).to_bytes(8, "little"), head.tobytes(), *ids, *data]))


def unpack(blob: bytes, whose: str) -> Iterator[Pending]:
    """Raises InputError with `whose` for a corrupt blob."""
    packed = bytes(unsealed(blob, whose))
    n = int.from_bytes(packed[:8], "little")
    closes_ms, of_id, of_data = np.frombuffer(packed, "<i8", 3 * n, 8).reshape(3, n).tolist()
    at = 8 + 24 * n
    data_at = at + sum(of_id)
    for closes, id_bytes, data_bytes in zip(closes_ms, of_id, of_data, strict=True):
        yield packed[at : at + id_bytes].decode(), closes, packed[data_at : data_at + data_bytes]
        at, data_at = at + id_bytes, data_at + data_bytes
