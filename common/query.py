"""Reads `name?key=value&key=value`: how a source or a model is named together with its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def defaults(build: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of `build` that have a default, and that default."""
    return {p.name: p.default for p in inspect.signature(build).parameters.values() if p.default is not p.empty}


def parameters(thing: str, build: Callable[..., Any], query: str) -> dict[str, Any]:
    """The values of `query` for the parameters of `build` that have a default, each of that default's type.

    `thing` names what is built in an error ("source 'simulator'"). Raises ValueError for a name that is no parameter
    and for a text that is no value of the type.
    """
    allowed = defaults(build)
    values: dict[str, Any] = {}
    for pair in query.split("&") if query else []:
        key, equals, text = pair.partition("=")
        if key not in allowed or not equals:
            raise ValueError(f"{thing}: {pair!r} is no parameter, allowed are {'=, '.join(allowed)}=")
        kind = type(allowed[key])
        try:
            values[key] = kind(text)
        except ValueError as e:
            raise ValueError(f"{thing}: {key} is {text!r}, allowed is a value of type {kind.__name__}") from e
    return values
