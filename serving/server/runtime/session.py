"""Loads a SavedModel and runs it through TensorFlow's C API (tensorflow/c/c_api.h), in the library of the wheel.

This is the C++ session that TensorFlow Serving uses. It takes any shape that the graph itself takes, where Python's
Session compares it with the signature first. The process needs no TensorFlow in Python, which takes seconds to import.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from serving.server.runtime.tensors import DTYPES, STRING, to_proto, type_of

_INVALID_ARGUMENT = 3
_SAME_THREAD = -1
"""The thread pool of a run that has none: its ops run in the caller's thread. The ranker's takes 190 us, else 280."""


class _Buffer(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p))


class _Output(ctypes.Structure):
    _fields_ = (("operation", c_void_p), ("index", c_int))


_OUTPUTS, _TENSORS = POINTER(_Output), POINTER(c_void_p)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "AllocateTensor": (c_void_p, [c_int, POINTER(c_int64), c_int, c_size_t]),
    "CloseSession": (None, [c_void_p, c_void_p]),
    "DeleteBuffer": (None, [POINTER(_Buffer)]),
    "DeleteGraph": (None, [c_void_p]),
    "DeleteSession": (None, [c_void_p, c_void_p]),
    "DeleteSessionOptions": (None, [c_void_p]),
    "DeleteStatus": (None, [c_void_p]),
    "DeleteTensor": (None, [c_void_p]),
    "Dim": (c_int64, [c_void_p, c_int]),
    "GetCode": (c_int, [c_void_p]),
    "GraphOperationByName": (c_void_p, [c_void_p, c_char_p]),
    "LoadSessionFromSavedModel": (
        c_void_p,
        [c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, POINTER(_Buffer), c_void_p],
    ),
    "Message": (c_char_p, [c_void_p]),
    "NewBuffer": (POINTER(_Buffer), []),
    "NewBufferFromString": (POINTER(_Buffer), [c_char_p, c_size_t]),
    "NewGraph": (c_void_p, []),
    "NewSessionOptions": (c_void_p, []),
    "NewStatus": (c_void_p, []),
    "NumDims": (c_int, [c_void_p]),
    "OperationNumOutputs": (c_int, [c_void_p]),
    "SessionRun": (
        None,
        [c_void_p, c_void_p, _OUTPUTS, _TENSORS, c_int, _OUTPUTS, _TENSORS, c_int, c_void_p, c_int, c_void_p, c_void_p],
    ),
    "SetConfig": (None, [c_void_p, c_char_p, c_size_t, c_void_p]),
    "StringGetDataPointer": (c_void_p, [c_void_p]),
    "StringGetSize": (c_size_t, [c_void_p]),
    "TensorByteSize": (c_size_t, [c_void_p]),
    "TensorData": (c_void_p, [c_void_p]),
    "TensorElementCount": (c_int64, [c_void_p]),
    "TensorFromProto": (None, [POINTER(_Buffer), c_void_p, c_void_p]),
    "TensorType": (c_int, [c_void_p]),
    "Version": (c_char_p, []),
}
_SMALL = 1 << 16  # bytes that are copied without releasing Python's lock
_BYTE = np.dtype("u1")
_LONG = ("CloseSession", "DeleteSession", "LoadSessionFromSavedModel", "SessionRun", "TensorFromProto")
"""The functions that release Python's lock. A short one would only invite other threads to take it."""
_copy = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_void_p, c_size_t)(("memcpy", ctypes.PyDLL(None)))
_STRING_BYTES = 24  # of a TF_TString in a tensor

MAX_BYTES = 64 << 20
"""The limit of a message, and of a tensor in it: a small message can ask for a tensor of 10^12 equal values."""

Array = npt.NDArray[Any]
Value = Any
"""An array or a TensorProto."""
Function = Callable[[Mapping[str, Value]], dict[str, Array]]


class SessionError(Exception):
    """TensorFlow's error: its code, which equals gRPC's, and its text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class _Library:
    """The functions of the C API, each without its prefix TF_."""

    def __init__(self) -> None:
        path = str(Path(config_pb2.__file__).parents[2] / "libtensorflow_cc.so.2")
        releasing, keeping = ctypes.CDLL(path), ctypes.PyDLL(path)  # Python's lock
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(releasing if name in _LONG else keeping, f"TF_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def checked(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function whose last argument is a status; raises SessionError."""
        status = self.NewStatus()
        try:
            result = function(*arguments, status)
            if code := self.GetCode(status):
                raise SessionError(code, self.Message(status).decode(errors="replace"))
            return result
        finally:
            self.DeleteStatus(status)


@cache
def library() -> _Library:
    """The wheel's library. Loading it takes half a second."""
    return _Library()


class Session:
    """The SavedModel in the folder `path`, restored and initialized; of its graphs, the one with `tags`."""

    def __init__(self, path: Path, tags: Sequence[str], config: config_pb2.ConfigProto) -> None:
        self._tf = tf = library()
        options, meta_graph, packed = tf.NewSessionOptions(), tf.NewBuffer(), config.SerializeToString()
        own_threads = not config.inter_op_parallelism_threads
        run_options = config_pb2.RunOptions(inter_op_thread_pool=_SAME_THREAD if own_threads else 0).SerializeToString()
        self._run_options = tf.NewBufferFromString(run_options, len(run_options))
        self._graph = tf.NewGraph()
        try:
            tf.checked(tf.SetConfig, options, packed, len(packed))
            names = (c_char_p * len(tags))(*(tag.encode() for tag in tags))
            folder = str(path).encode()
            self._session = tf.checked(
                tf.LoadSessionFromSavedModel, options, None, folder, names, len(tags), self._graph, meta_graph
            )
            content = ctypes.string_at(meta_graph.contents.data, meta_graph.contents.length)
        except BaseException:
            self._release()
            raise
        finally:
            tf.DeleteBuffer(meta_graph)
            tf.DeleteSessionOptions(options)
        self.meta_graph = meta_graph_pb2.MetaGraphDef.FromString(content)

    def function(self, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Function:
        """A function from the values of `inputs` to those of `outputs`, both alias -> name of a tensor."""
        tf, session, options = self._tf, self._session, self._run_options
        n, m = len(inputs), len(outputs)
        feeds = (_Output * n)(*map(self._output, inputs.values()))
        fetches = (_Output * m)(*map(self._output, outputs.values()))

        def run(values: Mapping[str, Value]) -> dict[str, Array]:
            fed, results = (c_void_p * n)(), (c_void_p * m)()
            try:
                for i, alias in enumerate(inputs):
                    value = values[alias]
                    parse = isinstance(value, tensor_pb2.TensorProto)
                    fed[i] = _parsed(tf, alias, value) if parse else _tensor(tf, np.asarray(value))
                tf.checked(tf.SessionRun, session, options, feeds, fed, n, fetches, results, m, None, 0, None)
                return {alias: _array(tf, results[i]) for i, alias in enumerate(outputs)}
            finally:
                for tensor in (*fed, *results):
                    if tensor:
                        tf.DeleteTensor(tensor)

        return run

    def close(self) -> None:
        """Frees all of it. Nothing may run then; a second call does nothing."""
        session, self._session = self._session, None
        if session:
            self._tf.checked(self._tf.CloseSession, session)
            self._tf.checked(self._tf.DeleteSession, session)
            self._release()

    def _release(self) -> None:
        self._tf.DeleteBuffer(self._run_options)
        self._tf.DeleteGraph(self._graph)

    def _output(self, name: str) -> _Output:
        operation_name, _, index = name.partition(":")
        operation = self._tf.GraphOperationByName(self._graph, operation_name.encode())
        if not operation or not index.isdecimal() or int(index) >= self._tf.OperationNumOutputs(operation):
            raise SessionError(_INVALID_ARGUMENT, f"Tensor {name}, specified in the signature, is not in the graph")
        return _Output(operation, int(index))


def _tensor(tf: _Library, array: Array) -> int:
    kind = type_of(array)
    if kind == STRING:
        return _parsed(tf, "text", to_proto(array, tensor_pb2.TensorProto()))
    whole = np.ascontiguousarray(array)
    return _copied(tf, kind, array.shape, whole.ctypes.data, array.nbytes)


def _copied(tf: _Library, kind: int, shape: Sequence[int], content: bytes | int, size: int) -> int:
    """A tensor with `size` bytes of `content`, which may be an address."""
    tensor: int = tf.AllocateTensor(kind, (c_int64 * len(shape))(*shape), len(shape), size)
    if size:
        copy = _copy if size < _SMALL else ctypes.memmove
        copy(tf.TensorData(tensor), content, size)
    return tensor


def _parsed(tf: _Library, alias: str, proto: tensor_pb2.TensorProto) -> int:
    """A tensor from its message. If a list of values ends early, the last one is repeated."""
    shape = [dim.size for dim in proto.tensor_shape.dim]
    size = math.prod(shape) * DTYPES.get(proto.dtype, _BYTE).itemsize
    if size > MAX_BYTES:
        raise SessionError(
            _INVALID_ARGUMENT, f"tensor parsing error: {alias}: shape {shape} has more than {MAX_BYTES} bytes"
        )
    content = proto.tensor_content
    if content and len(content) == size and proto.dtype in DTYPES and min(shape, default=0) >= 0:
        return _copied(tf, proto.dtype, shape, content, size)
    packed = proto.SerializeToString()
    buffer, tensor = tf.NewBufferFromString(packed, len(packed)), tf.AllocateTensor(1, None, 0, 4)
    try:
        tf.checked(tf.TensorFromProto, buffer, tensor)
    except SessionError as e:
        tf.DeleteTensor(tensor)
        raise SessionError(_INVALID_ARGUMENT, f"tensor parsing error: {alias}: {e}") from e
    finally:
        tf.DeleteBuffer(buffer)
    return int(tensor)


def _array(tf: _Library, tensor: int | None) -> Array:
    kind, data = tf.TensorType(tensor), tf.TensorData(tensor)
    shape = [tf.Dim(tensor, i) for i in range(tf.NumDims(tensor))]
    if kind == STRING:
        strings = np.empty(tf.TensorElementCount(tensor), object)
        for i in range(len(strings)):
            address = data + i * _STRING_BYTES
            strings[i] = ctypes.string_at(tf.StringGetDataPointer(address), tf.StringGetSize(address))
        return strings.reshape(shape)
    if kind not in DTYPES:
        raise SessionError(_INVALID_ARGUMENT, f"an output has the data type {kind}, allowed are numbers and strings")
    content = ctypes.string_at(data, tf.TensorByteSize(tensor)) if data else b""
    return np.frombuffer(content, DTYPES[kind]).reshape(shape)
