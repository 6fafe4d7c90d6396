"""A source: the one module that knows where events come from and what their columns mean."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from common.query import parameters
from streaming.declaration import Declaration
from streaming.exposures import Exposure, judged

__all__ = ["Exposure", "Source", "load"]


class Source(Protocol):
    """The interface of a source's module. Both iterators are in event order; `live` begins where `history` ends.

    Each call of them begins anew. Features are those of the time `ts_ms`: nothing that happened later may leak into
    them.
    """

    declaration: Declaration

    def history(self) -> Iterator[Exposure]:
        """The days before `live`: a batch pass over them makes the base."""

    def live(self) -> Iterator[Exposure]:
        """The events that are replayed against the served model."""


class _Judged:
    """A source whose exposures are judged as they are read. All else is the source's own."""

    def __init__(self, source: Any) -> None:
        self._source, self.declaration = source, source.declaration

    def history(self) -> Iterator[Exposure]:
        return judged("history", self._source.history, self.declaration)

    def live(self) -> Iterator[Exposure]:
        return judged("live", self._source.live, self.declaration)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def load(name: str) -> Source:
    """Loads a source: a module of streaming/sources (kuairand, simulator), a dotted module, or a path to a .py file.

    What its `history` and `live` give is judged (streaming/exposures.py): InputError names the first wrong exposure.

    A module with parameters has `configure(...) -> Source`, and is named as in `simulator?seed=7&minutes=30`.
    """
    where, _, query = name.partition("?")
    module = _module(where)
    configure = getattr(module, "configure", None)
    if configure is None and query:
        raise ValueError(f"source {where!r} takes no parameters, given are {query!r}")
    source = module if configure is None else configure(**parameters(f"source {where!r}", configure, query))
    if not isinstance(getattr(source, "declaration", None), Declaration):
        raise ValueError(f"source {name!r} has no `declaration` (streaming.declaration.Declaration)")
    for needed in ("history", "live"):
        if not callable(getattr(source, needed, None)):
            raise ValueError(f"source {name!r} has no `{needed}()`")
    return _Judged(source)


def _module(where: str) -> ModuleType:
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        if spec is None or spec.loader is None or not Path(where).is_file():
            raise ValueError(f"source is {where!r}: no such file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    dotted = where if "." in where else f"streaming.sources.{where}"
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as e:
        # Only if the module itself, or a package above it, is missing. An import inside it raises as it is.
        if e.name is None or not (dotted == e.name or dotted.startswith(e.name + ".")):
            raise
        allowed = "kuairand, simulator, a dotted module, a path to a .py file"
        raise ValueError(f"source is {where!r}: allowed are {allowed}") from e
