"""JSON values as arrays, and arrays as JSON values, by the rules of TensorFlow Serving's REST API."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from serving.server.servable import invalid

MAX_RANK = 32
"""The dimensions of a tensor. NumPy and TensorFlow have their own limits, beyond it."""


def to_array(name: str, value: Any, info: Any) -> npt.NDArray[Any]:
    """Converts a JSON value to the array that `info` (TensorInfo) describes; RequestError names the input `name`."""
    dtype = tf.as_dtype(info.dtype)
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > MAX_RANK:
        raise invalid(f"{name}: JSON Value is nested {len(shape)} deep, allowed are {MAX_RANK}")
    cells = [_cell(name, cell, dtype) for cell in _cells(name, value, shape)]
    if 0 in shape:  # JSON does not show the dimensions after an empty one
        shape += [max(dim.size, 0) for dim in info.tensor_shape.dim[len(shape) :]]
    with np.errstate(over="ignore"):  # a number beyond float32 is infinite, as TensorFlow Serving has it
        return np.array(cells, object if dtype == tf.string else dtype.as_numpy_dtype).reshape(shape)


def _cells(name: str, value: Any, shape: list[int], level: int = 0) -> Iterator[Any]:
    """The values in nested lists; RequestError if the lists do not all have this shape."""
    if level == len(shape):
        if isinstance(value, list):
            raise invalid(f"{name}: Encountered list at unexpected level: {level} expected < {len(shape)}")
        yield value
    elif not isinstance(value, list):
        raise invalid(
            f"{name}: JSON Value: {json.dumps(value)[:100]} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {len(shape)}"
        )
    elif len(value) != shape[level]:
        raise invalid(
            f"{name}: Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    else:
        for inner in value:
            yield from _cells(name, inner, shape, level + 1)


def _cell(name: str, value: Any, dtype: tf.DType) -> Any:
    """One JSON value as one of an array of `dtype`; RequestError if it is of another type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == tf.string and isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise invalid(f"{name}: JSON Value: {json.dumps(value)[:100]} is not Unicode text") from None
    if dtype == tf.string and isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError:
            raise invalid(f"{name}: Unable to base64 decode") from None
    if dtype.is_integer and number and isinstance(value, int) and dtype.min <= value <= dtype.max:
        return value
    if dtype.is_floating and number and (isinstance(value, float) or abs(value) <= sys.float_info.max):
        return value
    if dtype.is_bool and isinstance(value, bool):
        return value
    raise invalid(f"{name}: JSON Value: {json.dumps(value)[:100]} is not of expected type: {dtype.name}")


def inputs_of(
    body: Mapping[str, Any], signature: Mapping[str, Any], most_rows: int
) -> tuple[dict[str, npt.NDArray[Any]], bool]:
    """The arrays of a predict body for the inputs of `signature`. True: it has rows, `instances`; else `inputs`."""
    rows, columns = "instances" in body, "inputs" in body
    if rows and columns:
        raise invalid("Not formatted correctly expected only one of 'instances' or 'inputs' key")
    if not rows and not columns:
        raise invalid("Missing 'inputs' or 'instances' key")
    if columns:
        values = body["inputs"]
        if not isinstance(values, dict) or (len(signature) == 1 and "b64" in values):
            if len(signature) != 1:
                raise invalid("'inputs' must be an object that names the inputs: the signature does not have only one")
            values = {next(iter(signature)): values}
    else:
        values = _columns(body["instances"], signature)
    for name, value in values.items():
        if name not in signature:
            raise invalid(f"JSON object: does not have named input: {name}. Known: {', '.join(sorted(signature))}")
        if isinstance(value, list) and len(value) > most_rows:
            raise invalid(f"{name}: {len(value)} rows, allowed are {most_rows} (--rest_api_max_rows)")
    return {name: to_array(name, value, signature[name]) for name, value in values.items()}, rows


def _columns(instances: Any, signature: Mapping[str, Any]) -> dict[str, list[Any]]:
    if not isinstance(instances, list) or not instances:
        raise invalid("'instances' must be a list with at least one row")
    named = all(isinstance(row, dict) and set(row) != {"b64"} for row in instances)
    if not named:
        if len(signature) != 1:
            raise invalid(f"'instances' must be objects that name the inputs: {', '.join(sorted(signature))}")
        return {next(iter(signature)): instances}
    for i, row in enumerate(instances):
        if set(row) != set(instances[0]):
            raise invalid(
                f"Failed to process element: {i} of 'instances' list: its inputs differ from those of the first"
            )
    return {name: [row[name] for row in instances] for name in instances[0]}


def plain(name: str, value: npt.NDArray[Any]) -> Any:
    """An output as JSON: each float with the fewest digits that give the same float, bytes of `*_bytes` as base64."""
    if value.ndim:
        return [plain(name, inner) for inner in value]
    item = value.item() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(item, bytes):
        if name.endswith("_bytes"):
            return {"b64": base64.b64encode(item).decode()}
        return item.decode(errors="replace")
    return float(str(value)) if isinstance(item, float) else item


def reply_of(outputs: Mapping[str, npt.NDArray[Any]], rows: bool) -> dict[str, Any]:
    """The JSON answer: `predictions` by rows, or `outputs` by columns."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    if rows:
        sizes = {array.shape[0] if array.ndim else None for array in arrays.values()}
        if len(sizes) != 1 or None in sizes:
            raise invalid("the outputs are no rows of one batch: ask for them by 'inputs'")
    values = {name: plain(name, array) for name, array in arrays.items()}
    if not rows:
        return {"outputs": next(iter(values.values())) if len(values) == 1 else values}
    if len(values) == 1:
        return {"predictions": next(iter(values.values()))}
    return {"predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}
