"""The models, one module each, which implement the interface of training/models/model.py."""

from __future__ import annotations

import pkgutil

SEAM = ("losses", "model", "pooling", "ranker", "retrieval", "sizes")


def names() -> list[str]:
    """Lists the models of this folder, without TensorFlow."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SEAM)
