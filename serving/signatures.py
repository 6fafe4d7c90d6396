"""The names of the calls that patch a served model: both ends of the wire use these."""

from __future__ import annotations

import re


def input_name(weight: str) -> str:
    """The input of `apply_dense` that carries `weight`."""
    return re.sub(r"\W", "_", weight)
