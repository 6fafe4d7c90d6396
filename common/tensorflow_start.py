"""TensorFlow starts with half of the processor time.

It imports Keras, and Keras imports scikit-learn, matplotlib and pandas if they are installed: for wrappers and pictures
that nobody here asks for. And Python's garbage collector looks again and again through the objects of two thousand
modules, which live as long as the process: it rests meanwhile, and leaves them out for ever.
"""

from __future__ import annotations

import gc
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

LEFT_OUT = frozenset({"matplotlib", "pandas", "sklearn"})


class _Start:
    """A finder that has none of LEFT_OUT until Keras is imported. Keras takes it as "not installed"."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        spec = getattr(sys.modules.get("keras"), "__spec__", None)
        if name in LEFT_OUT and getattr(spec, "_initializing", False):
            raise ModuleNotFoundError(f"{name} is left out while Keras starts", name=name)
        spec = PathFinder.find_spec(name) if name == "tensorflow" else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Uncollected(spec.loader)
        return spec


class _Uncollected(Loader):
    """Runs a module without garbage collection. What is there at its end is never collected."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            self._loader.exec_module(module)
            gc.freeze()
        finally:
            if was_enabled:
                gc.enable()

    def __getattr__(self, name: str) -> object:  # what else a loader can do, for importlib.resources and inspect
        return getattr(self._loader, name)


def lean() -> None:
    """Call it before TensorFlow is imported for the first time."""
    if _Start not in sys.meta_path:
        sys.meta_path.insert(0, _Start)
