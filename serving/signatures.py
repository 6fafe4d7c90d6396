"""The names of served models and of the calls that patch them: both ends of the wire use these."""

from __future__ import annotations

import re

RANKER = "ranker"
"""The name under which the model is served that learns."""

FROZEN = "frozen"
"""The name of its copy that no delta changes, for a comparison; and of that copy's folder."""


def input_name(weight: str) -> str:
    """The input of `apply_dense` that carries `weight`."""
    return re.sub(r"\W", "_", weight)
