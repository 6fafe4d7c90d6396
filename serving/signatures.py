"""Names that the client and the served graph share: of models, and of the inputs of a call."""

from __future__ import annotations

import re

RANKER = "ranker"
"""The name of the model that applications call."""
FROZEN = "frozen"
"""The name of a copy that no delta changes, for comparison."""


def input_name(weight: str) -> str:
    """The input of `apply_dense` that carries `weight`."""
    return re.sub(r"\W", "_", weight)
