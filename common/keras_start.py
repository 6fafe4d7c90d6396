"""Keras starts without the libraries that it only looks for.

TensorFlow imports Keras, and Keras imports scikit-learn, matplotlib and pandas if they are installed: for wrappers and
pictures that nobody here asks for, 1.5 of the 4 seconds of processor time that a process needs to start.
"""

from __future__ import annotations

import sys

LEFT_OUT = frozenset({"matplotlib", "pandas", "sklearn"})


class _NotWhileKerasStarts:
    """A finder that has none of LEFT_OUT until Keras is imported. Keras takes it as "not installed"."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        spec = getattr(sys.modules.get("keras"), "__spec__", None)
        if name in LEFT_OUT and getattr(spec, "_initializing", False):
            raise ModuleNotFoundError(f"{name} is left out while Keras starts", name=name)


def lean() -> None:
    """Call it before TensorFlow is imported for the first time."""
    if _NotWhileKerasStarts not in sys.meta_path:
        sys.meta_path.insert(0, _NotWhileKerasStarts)
