"""The cells of a tensor in JSON: which values a dtype takes, and what is wrong with a body that cannot be converted."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tensorflow.core.framework import types_pb2

from serving.server.rest.json_text import shown
from serving.server.runtime.servable import RequestError, invalid

FLOAT_MAX = float(np.finfo(np.float32).max)


class Kind(NamedTuple):
    """A dtype that JSON can express: its name in TensorFlow, its NumPy type, and the Python types of its cells."""

    name: str
    dtype: Any
    cells: frozenset[type]
    most_integer: float = math.inf
    """A greater integer would lose digits."""


_FLOAT_CELLS = frozenset({int, float})
KINDS: dict[int, Kind] = {
    types_pb2.DT_FLOAT: Kind("float", np.float32, _FLOAT_CELLS, 2**24 - 1),
    types_pb2.DT_DOUBLE: Kind("double", np.float64, _FLOAT_CELLS, 2**53 - 1),
    types_pb2.DT_BOOL: Kind("bool", np.bool_, frozenset({bool})),
    types_pb2.DT_STRING: Kind("string", np.object_, frozenset({str, dict})),
} | {
    types_pb2.DataType.Value(f"DT_{name.upper()}"): Kind(name, getattr(np, name), frozenset({int}))
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")
}
"""By the number that TensorInfo has for a dtype."""

_JSON_TYPES = {
    dict: "Object", list: "Array", str: "String", int: "Number", float: "Number", type(None): "Null",
}  # fmt: skip


def json_type(value: Any) -> str:
    return str(value) if isinstance(value, bool) else _JSON_TYPES[type(value)]


def is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def bytes_of(cell: str | dict[str, Any]) -> bytes:
    """The bytes of a string, or of base64; RequestError if it is neither."""
    if isinstance(cell, str):
        try:
            return cell.encode()
        except UnicodeEncodeError:
            raise invalid(f"JSON Value: {shown(cell)} is not Unicode text") from None
    if not is_base64(cell):
        raise invalid(f"JSON Value: {shown(cell)} not formatted correctly for base64 data")
    text = "".join(cell["b64"].split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise invalid("Unable to base64 decode") from None


def refusal(body: Mapping[str, Any], signature: Mapping[str, Any]) -> RequestError:
    """What is wrong with the cells of a predict body for the inputs `signature`."""
    try:
        if "instances" in body:
            _check_rows(body["instances"], signature)
        else:
            _check_columns(body["inputs"], signature)
    except RequestError as e:
        return e
    return invalid(f"JSON Value: {shown(body)} does not fit the inputs of the signature")


def _check_columns(inputs: Any, signature: Mapping[str, Any]) -> None:
    for name, info in signature.items():
        value = inputs[name] if isinstance(inputs, dict) and not is_base64(inputs) else inputs
        try:
            _check(value, info)
        except RequestError as e:
            raise invalid(f"{name}: {e.text}") from e


def _check_rows(rows: Sequence[Any], signature: Mapping[str, Any]) -> None:
    named = isinstance(rows[0], dict) and not is_base64(rows[0])
    shapes: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if (isinstance(row, dict) and not is_base64(row)) != named:
            expected = "object but got list" if named else "value/list but got object"
            raise invalid(f"Expecting {expected} at item {i} of input list")
        for name, value in row.items() if named else [(next(iter(signature)), row)]:
            try:
                _check_row(name, value, signature, shapes)
            except RequestError as e:
                key = f" key: {name}" if named else ""
                text = f"Failed to process element: {i}{key} of 'instances' list. Error: INVALID_ARGUMENT: {e.text}"
                raise invalid(text) from e
        if named and row.keys() != signature.keys():
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {shown(row)} keys must be equal to: "
                f"{','.join(sorted(signature))}"
            )


def _check_row(name: str, value: Any, signature: Mapping[str, Any], shapes: dict[str, list[int]]) -> None:
    """Checks the value that one row has for an input, and that its shape is the one of the rows before."""
    if name not in signature:
        raise invalid(f"JSON object: does not have named input: {name}")
    shape = _check(value, signature[name])
    expected = shapes.setdefault(name, shape)
    if math.prod(shape) != math.prod(expected):
        raise invalid(f"Expecting tensor size: {math.prod(expected)} but got: {math.prod(shape)}")
    if shape != expected:
        texts = ["[" + ",".join(map(str, sizes)) + "]" for sizes in (expected, shape)]
        raise invalid(f"Expecting shape {texts[0]} but got: {texts[1]}")


def _check(value: Any, info: Any) -> list[int]:
    """The shape of a value; RequestError if it is not one tensor of the dtype in `info` (TensorInfo)."""
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    _check_level(value, shape, 0, info)
    return shape


def _check_level(value: Any, shape: list[int], level: int, info: Any) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        return _check_cell(value, info)
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for inner in value:
        _check_level(inner, shape, level + 1, info)


def _check_cell(value: Any, info: Any) -> None:
    kind = KINDS[info.dtype]
    fits = type(value) in kind.cells
    if fits and kind.cells == {int}:
        limits = np.iinfo(kind.dtype)
        fits = limits.min <= value <= limits.max
    if not fits:
        raise invalid(f"JSON Value: {shown(value)} Type: {json_type(value)} is not of expected type: {kind.name}")
    if kind.dtype is np.object_:
        bytes_of(value)
    elif kind.cells is _FLOAT_CELLS and not lossless(value, kind):
        raise invalid(f"Cannot convert JSON value: {shown(value)} to {kind.name} without loss of precision.")


def lossless(value: float, kind: Kind) -> bool:
    """Whether a number fits a floating type: an integer with all its digits, a fraction within its range."""
    if isinstance(value, int):
        return abs(value) <= kind.most_integer
    return kind.name == "double" or not FLOAT_MAX < abs(value) < math.inf
