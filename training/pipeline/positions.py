"""Positions in Kafka, beside the archive's examples: which of them a base has learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def before(table: Any, offsets: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Returns bool[n]: whether each of the archive's examples lies before the offset of its partition (none: 0)."""
    ends = {int(partition): int(offset) for partition, offset in offsets.items()}
    partition, offset = table["partition"].to_numpy(), table["offset"].to_numpy()
    return np.asarray(offset < np.array([ends.get(p, 0) for p in partition.tolist()], np.int64))
