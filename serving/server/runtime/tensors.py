"""Arrays as TensorProtos, without TensorFlow in Python and without a loop over numbers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from tensorflow.core.framework import types_pb2 as types
from tensorflow.core.framework.tensor_pb2 import TensorProto

STRING: int = types.DT_STRING
_VALUES: dict[str, dict[int, Any]] = {
    "float_val": {types.DT_FLOAT: "f4"},
    "double_val": {types.DT_DOUBLE: "f8"},
    "int_val": {types.DT_INT32: "i4", types.DT_INT16: "i2", types.DT_INT8: "i1", types.DT_UINT8: "u1",
                types.DT_UINT16: "u2"},
    "int64_val": {types.DT_INT64: "i8"},
    "uint32_val": {types.DT_UINT32: "u4"},
    "uint64_val": {types.DT_UINT64: "u8"},
    "bool_val": {types.DT_BOOL: "?"},
    "half_val": {types.DT_HALF: "f2", types.DT_BFLOAT16: ml_dtypes.bfloat16},
    "scomplex_val": {types.DT_COMPLEX64: "c8"},
    "dcomplex_val": {types.DT_COMPLEX128: "c16"},
}  # fmt: skip
_LISTED_AS: dict[str, np.dtype[Any]] = {
    "half_val": np.dtype("u2"),
    "scomplex_val": np.dtype("f4"),
    "dcomplex_val": np.dtype("f8"),
}
"""The numbers in a list that are not the tensor's own: bits of 16, or the real and the imaginary parts."""

DTYPES: dict[int, np.dtype[Any]] = {k: np.dtype(d) for kinds in _VALUES.values() for k, d in kinds.items()}
"""TensorFlow's DataType -> NumPy's. A string has none: its arrays hold bytes as objects."""
_FIELDS = {kind: field for field, kinds in _VALUES.items() for kind in kinds}
_TYPES = {dtype: kind for kind, dtype in DTYPES.items()}


def type_of(array: npt.NDArray[Any]) -> int:
    """The DataType of an array; ValueError if TensorFlow has none."""
    if array.dtype.kind in "OSU":
        return STRING
    try:
        return _TYPES[array.dtype]
    except KeyError:
        raise ValueError(f"TensorFlow has no data type for an array of {array.dtype}") from None


def to_proto(array: npt.NDArray[Any], tensor: TensorProto, content: bool = False) -> TensorProto:
    """Writes an array to an empty `tensor`: its numbers as a list, or as bytes in `tensor_content`. Returns it."""
    kind = tensor.dtype = type_of(array)
    dims = tensor.tensor_shape.dim  # a scalar has a shape, without dims
    tensor.tensor_shape.SetInParent()
    for size in array.shape:
        dims.add(size=size)
    if kind == STRING:
        strings = array.ravel().tolist()
        tensor.string_val.extend(s.encode() if isinstance(s, str) else s for s in strings)
    elif content:
        tensor.tensor_content = array.tobytes()
    else:
        field, flat = _FIELDS[kind], np.ascontiguousarray(array).ravel()
        getattr(tensor, field).extend(flat.view(_LISTED_AS.get(field, flat.dtype)).tolist())
    return tensor
