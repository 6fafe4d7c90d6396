"""Names that the client, the export and the served graph share: of models, and of the inputs of a call."""

from __future__ import annotations

import re

RANKER = "ranker"
"""The name of the model that applications call."""
FROZEN = "frozen"
"""The name of a copy that no delta changes, for comparison."""
WRITES = ("apply_dense", "apply_delta", "apply_file")
"""The signatures that a frozen copy does not have."""
UNUSED = "unused"
"""The optional input of the signatures that need none: over REST, TensorFlow Serving refuses one without inputs."""
NO_OP = -1
"""The seq of an `apply_dense` or `apply_delta` that changes nothing."""


def input_name(weight: str) -> str:
    """The input of `apply_dense` that carries `weight`."""
    return re.sub(r"\W", "_", weight)
