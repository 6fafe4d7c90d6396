"""The names of served models, and of the calls that patch them: both ends of the wire use these."""

from __future__ import annotations

import re

RANKER, FROZEN = "ranker", "frozen"
"""The model that apps ask, and the copy of its base that stays as it is."""


def input_name(weight: str) -> str:
    """The input of `apply_dense` that carries `weight`."""
    return re.sub(r"\W", "_", weight)
