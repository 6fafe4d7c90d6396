"""JSON values as arrays, and arrays as JSON values, by the rules of TensorFlow Serving's REST API.

Values are converted by columns. Single cells are looked at only to tell what is wrong with them, in json_cells.py.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from itertools import chain
from operator import itemgetter
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tensorflow.core.framework import types_pb2

from serving.server.rest.json_cells import KINDS, Kind, bytes_of, is_base64, lossless, refusal
from serving.server.rest.json_text import shown, written
from serving.server.runtime.servable import RequestError, invalid

MAX_RANK = 32
"""The dimensions of a tensor. NumPy and TensorFlow have their own limits, beyond it."""

_OUTPUTS = frozenset(np.dtype(kind.dtype) for kind in KINDS.values())
_PLAIN = "inputs is a plain value/list, but expecting an object"
_LIST = "instances is a plain list, but expecting list of objects"


def inputs_of(
    body: Mapping[str, Any], signature: Mapping[str, Any], most_rows: int
) -> tuple[dict[str, npt.NDArray[Any]], bool]:
    """The arrays of a predict body for the inputs of `signature`. True: it has rows, `instances`; else `inputs`."""
    rows = "instances" in body
    if rows and "inputs" in body:
        text = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
        raise invalid(f"JSON Value: {shown(body)} {text}")
    if not rows and "inputs" not in body:
        raise invalid("Missing 'inputs' or 'instances' key")
    columns = _of_rows(body, signature) if rows else _of_columns(body["inputs"], signature)
    for name, values in columns.items():
        if isinstance(values, list) and len(values) > most_rows:
            raise invalid(f"{name}: {len(values)} rows, allowed are {most_rows} (--rest_api_max_rows)")
    arrays = {name: to_array(values, signature[name]) for name, values in columns.items()}
    present = {name: array for name, array in arrays.items() if array is not None}
    if len(present) < len(signature):
        raise refusal(body, signature)
    return present, rows


def _of_columns(inputs: Any, signature: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(inputs, dict) or is_base64(inputs):
        if len(signature) != 1:
            raise invalid(f"{_PLAIN} as multiple input tensors required as per tensorinfo_map")
        return {name: inputs for name in signature}
    for name in signature:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: inputs[name] for name in signature}


def _of_rows(body: Mapping[str, Any], signature: Mapping[str, Any]) -> dict[str, list[Any]]:
    rows = body["instances"]
    if not isinstance(rows, list):
        raise invalid(f"JSON Value: {shown(body)} Excepting 'instances' to be an list/array")
    if not rows:
        raise invalid(f"JSON Value: {shown(body)} No values in 'instances' array")
    if not isinstance(rows[0], dict) or is_base64(rows[0]):
        if len(signature) != 1:
            raise invalid(f"{_LIST} as multiple input tensors required as per tensorinfo_map")
        return {name: rows for name in signature}
    try:
        if set(map(type, rows)) == {dict} and set(map(len, rows)) == {len(signature)}:
            return {name: list(map(itemgetter(name), rows)) for name in signature}
    except KeyError:
        pass
    raise refusal(body, signature)


def to_array(value: Any, info: Any) -> npt.NDArray[Any] | None:
    """The tensor in nested lists, of the dtype in `info` (TensorInfo); None if a list or a cell does not fit."""
    kind = KINDS.get(info.dtype)
    if kind is None:
        name = types_pb2.DataType.Name(info.dtype)[3:].lower()
        text = f"Conversion of JSON Value: {shown(value)} to type: {name}"
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, text)
    shape, cells = ([len(value)], value) if type(value) is list else ([], [value])
    while cells and type(cells[0]) is list:
        if len(shape) == MAX_RANK:
            raise invalid(f"JSON Value is nested deeper than {MAX_RANK}, allowed are {MAX_RANK}")
        if set(map(type, cells)) != {list} or len(set(map(len, cells))) != 1:
            return None
        shape.append(len(cells[0]))
        cells = list(chain.from_iterable(cells))
    array = _of_cells(cells, kind)
    if not cells:  # JSON does not show the dimensions after an empty one
        shape += [max(dim.size, 0) for dim in info.tensor_shape.dim[len(shape) :]]
    return None if array is None else array.reshape(shape)


def _of_cells(cells: list[Any], kind: Kind) -> npt.NDArray[Any] | None:
    types = set(map(type, cells))
    if not types <= kind.cells:
        return None
    try:
        if kind.dtype is np.object_:
            return np.array([*map(bytes_of, cells), None], np.object_)[:-1]
        if kind.most_integer == math.inf:
            return np.array(cells, kind.dtype)
        if int in types and not all(lossless(cell, kind) for cell in cells):
            return None
        with np.errstate(over="raise"):  # a number beyond float32
            return np.array(cells, kind.dtype)
    except (ArithmeticError, RequestError):
        return None


def reply_of(outputs: Mapping[str, Any], rows: bool) -> bytes:
    """The JSON answer: `predictions` by rows, or `outputs` by columns."""
    arrays = {name: _array(name, value) for name, value in outputs.items()}
    if rows:
        _check_batch(arrays)
    values = {name: _plain(name, array) for name, array in arrays.items()}
    if len(values) == 1:
        (reply,) = values.values()
    elif rows:
        reply = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    else:
        reply = values
    return written({"predictions" if rows else "outputs": reply})


def _array(name: str, value: Any) -> npt.NDArray[Any]:
    array = np.asarray(value, np.object_ if isinstance(value, bytes | str) else None)
    if array.dtype not in _OUTPUTS:
        type_name = {"float16": "half"}.get(array.dtype.name, array.dtype.name)
        raise invalid(f"Failed to write JSON value for tensor type: {type_name}")
    return array


def _check_batch(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    size: int | None = None
    for name, array in arrays.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size is not None and len(array) != size:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)


def _plain(name: str, array: npt.NDArray[Any]) -> Any:
    """What json_text can write: numbers as an array, `*_bytes` as lists of base64, other strings as lists of text."""
    if array.dtype != np.object_:
        return array[()] if array.ndim == 0 else np.ascontiguousarray(array)
    text = _base64 if name.endswith("_bytes") else _text
    cells = np.empty(array.size, np.object_)
    cells[:] = [text(cell) for cell in array.ravel()]
    return cells.reshape(array.shape).tolist()


def _base64(cell: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(cell).decode()}


def _text(cell: bytes) -> str:
    return cell.decode(errors="replace")
