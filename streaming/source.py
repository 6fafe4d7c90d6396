"""A source: one module that knows where its events come from and what their columns mean. Nothing else does."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from streaming.declaration import Declaration


class Exposure(NamedTuple):
    """One item shown to one user, and what came of it: `outcomes` is action -> the time it happened (ms, >= ts_ms)."""

    impression_id: str
    user_id: int
    item_id: int
    ts_ms: int
    features: dict[str, Any]
    outcomes: dict[str, int]


class Source(Protocol):
    """What a source's module offers. Both iterators go in event order; `live` begins where `history` ends.

    Features are as known at `ts_ms`: nothing that happened later may leak into them.
    """

    declaration: Declaration

    def history(self) -> Iterator[Exposure]:
        """The days before: one batch pass over them makes the base."""

    def live(self) -> Iterator[Exposure]:
        """What is replayed against the served model."""


def load(name: str) -> Source:
    """The source `name`: a module of `streaming` (kuairand, simulator), a dotted module, or a path to a .py file."""
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        if spec is None or spec.loader is None or not Path(name).is_file():
            raise ValueError(f"source is {name!r}: no such file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        dotted = name if "." in name else f"streaming.{name}"
        try:
            module = importlib.import_module(dotted)
        except ModuleNotFoundError as e:
            if e.name != dotted:
                raise
            raise ValueError(f"source is {name!r}: allowed are kuairand, simulator, a module, a path to a .py file") from e
    if not isinstance(getattr(module, "declaration", None), Declaration):
        raise ValueError(f"source {name!r} has no `declaration` (streaming.declaration.Declaration)")
    return cast(Source, module)
