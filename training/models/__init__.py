"""The models, one module each, on the seam of training/models/model.py."""

from __future__ import annotations

import pkgutil

SEAM = ("model", "pooling")


def names() -> list[str]:
    """The models of this folder; TensorFlow is not imported for it."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SEAM)
