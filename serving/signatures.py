"""The names of served models, and of the calls that patch them: both ends of the wire use these."""

from __future__ import annotations

import re

RANKER = "ranker"
"""The name of the model that apps ask."""
FROZEN = "frozen"
"""The name of a copy of its base that no delta changes, for a comparison."""


def input_name(weight: str) -> str:
    """The input of `apply_dense` that carries `weight`."""
    return re.sub(r"\W", "_", weight)
