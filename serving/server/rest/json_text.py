"""JSON text, read and written fast, with NaN and Infinity as TensorFlow Serving's REST API has them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson

from serving.server.runtime.servable import invalid

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
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
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


def written(value: Any) -> bytes:
    """`value` as JSON text. Arrays are lists in it, and floats have the fewest digits that give the same float."""
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:  # so orjson writes NaN and Infinity
        return json.dumps(value, default=_listed).encode()
    return text


def _listed(value: Any) -> Any:
    """An array, or a number of one, as Python's own lists and numbers."""
    if value.dtype != np.float32:
        return value.tolist()
    return np.array([float(str(cell)) for cell in value.ravel()], np.float64).reshape(value.shape).tolist()


def shown(value: Any) -> str:
    """The beginning of a value, for an error. The rest of it is not even written."""
    text = ""
    for part in json.JSONEncoder().iterencode(value):
        text += part
        if len(text) >= SHOWN:
            break
    return text[:SHOWN]
