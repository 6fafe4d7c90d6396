"""JSON text, read and written fast, with NaN and Infinity as TensorFlow Serving's REST API has them."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

from serving.server.servable import invalid

SHOWN = 100
"""The characters of a value that an error shows."""

_ERRORS = {  # Python's text -> TensorFlow Serving's
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma or ] after an array element.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Extra data": "The document root must not be followed by other values.",
}


def parsed(body: bytes) -> dict[str, Any]:
    """The object that a body holds; RequestError if it holds none."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError):
        value = _parsed_by_python(body)
    if not isinstance(value, dict):
        raise invalid(f"JSON Value: {shown(value)} Is not object")
    return value


def _parsed_by_python(body: bytes) -> Any:
    """Python's own parser knows NaN and Infinity, and where an error is."""
    if not body.strip():
        raise invalid("JSON Parse error: The document is empty")
    try:
        return json.loads(body, parse_float=_float)
    except json.JSONDecodeError as e:
        raise invalid(f"JSON Parse error: {_ERRORS.get(e.msg, e.msg)} at offset: {e.pos}") from e
    except ValueError as e:
        raise invalid(f"JSON Parse error: {e}") from e


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("Number too big to be stored in double.")
    return number


def written(value: Any, finite: bool = True) -> bytes:
    """`value` as JSON text. Numbers in it that are not `finite` become NaN and Infinity."""
    return msgspec.json.encode(value) if finite else json.dumps(value).encode()


def shown(value: Any) -> str:
    """The beginning of a value, for an error."""
    return json.dumps(value)[:SHOWN]
