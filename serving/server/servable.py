"""One loaded version of a model: a SavedModel in a Session of its own, run by signature."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import prediction_log_pb2

MAX_BYTES = 64 << 20
"""The limit of a message, and of a tensor in it: a small message can ask for a tensor of 10^12 equal values."""
MAX_WARM_UP_RECORDS = 1000  # TensorFlow Serving's own limit

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """The error that answers a request: a gRPC code, and TensorFlow Serving's text."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


def invalid(text: str) -> RequestError:
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, text)


def request_error(error: Exception) -> RequestError:
    """Any error as the answer to a request. TensorFlow's error codes equal those of gRPC."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, tf.errors.OpError):
        return RequestError(_CODES[error.error_code], error.message)
    return RequestError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


class Signature(NamedTuple):
    """Alias -> TensorInfo, and alias -> the value of an input that a request leaves out."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    defaults: Mapping[str, npt.NDArray[Any]] = {}


class Servable:
    """The SavedModel at `path`, loaded. Requests `use` it; `close` waits until no request does."""

    def __init__(self, name: str, version: int, path: Path, threads: tuple[int, int]) -> None:
        self.name, self.version = name, version
        intra, inter = threads
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=intra, inter_op_parallelism_threads=inter)
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        self._callables: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._users, self._closing, self._idle = 0, False, threading.Condition()
        try:
            with self._session.graph.as_default():
                graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
            self.signature_defs = dict(graph.signature_def)
            self.signatures = {
                n: Signature(dict(s.inputs), dict(s.outputs), {a: from_proto(a, t) for a, t in s.defaults.items()})
                for n, s in self.signature_defs.items() if n != "__saved_model_init_op"
            }  # fmt: skip
            self._warm_up(path / "assets.extra" / "tf_serving_warmup_requests")
        except BaseException:
            self._session.close()
            raise

    def name_in(self, spec: Any, signature: str = "") -> None:
        """Writes the name of this version to the ModelSpec of a reply."""
        spec.name, spec.signature_name = self.name, signature
        spec.version.value = self.version

    @contextmanager
    def use(self) -> Iterator[bool]:
        """Keeps the version loaded within the block; yields False if it is being unloaded."""
        with self._idle:
            usable = not self._closing
            self._users += usable
        try:
            yield usable
        finally:
            with self._idle:
                self._users -= usable
                self._idle.notify_all()

    def close(self) -> None:
        with self._idle:
            self._closing = True
            self._idle.wait_for(lambda: self._users == 0)
        self._session.close()

    def signature(self, name: str) -> Signature:
        try:
            return self.signatures[name]
        except KeyError:
            text = f'Serving signature key "{name}" not found.'
            raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, text) from None

    def run(
        self, signature: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, npt.NDArray[Any]]:
        """Runs `signature`, and returns the outputs of the aliases `outputs` (none: all outputs)."""
        sig = self.signature(signature)
        inputs = {**sig.defaults, **inputs}
        if len(inputs) != len(sig.inputs):
            sent, needed = sorted(inputs), sorted(sig.inputs)
            raise invalid(
                f"input size does not match signature: {len(sent)}!={len(needed)} "
                f"len({{{','.join(sent)}}}) != len({{{','.join(needed)}}}). "
                f"Sent extra: {{{','.join(sorted(set(sent) - set(needed)))}}}. "
                f"Missing but required: {{{','.join(sorted(set(needed) - set(sent)))}}}."
            )
        for alias, value in inputs.items():
            _check_input(alias, value, sig.inputs)
        for alias in outputs:
            if alias not in sig.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                    f"{{{','.join(sorted(sig.outputs))}}}."
                )
            if list(outputs).count(alias) > 1:
                raise invalid(f"duplicate output tensor alias: {alias}")
        fetched = tuple(outputs) or tuple(sorted(sig.outputs))
        call = self._callables.get((signature, fetched))
        if call is None:  # two threads may both make it: both are the same
            feeds = [sig.inputs[alias].name for alias in sorted(sig.inputs)]
            call = self._session.make_callable([sig.outputs[alias].name for alias in fetched], feeds)
            self._callables[signature, fetched] = call
        return dict(zip(fetched, call(*(inputs[alias] for alias in sorted(inputs))), strict=True))

    def _warm_up(self, records: Path) -> None:
        """Runs the recorded requests before the version is AVAILABLE. If one fails, the version is not loaded."""
        if not records.exists():
            return
        for i, record in enumerate(tf.data.TFRecordDataset(str(records))):
            if i == MAX_WARM_UP_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_WARM_UP_RECORDS}) at {records}")
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            if log.WhichOneof("log_type") != "predict_log":
                raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {log}")
            request = log.predict_log.request
            inputs = {alias: from_proto(alias, t) for alias, t in request.inputs.items()}
            self.run(request.model_spec.signature_name or "serving_default", inputs)


def _check_input(alias: str, value: npt.NDArray[Any], inputs: Mapping[str, Any]) -> None:
    if alias not in inputs:
        raise invalid(
            f"input tensor alias not found in signature: {alias}. Inputs expected to be in the set "
            f"{{{','.join(sorted(inputs))}}}."
        )
    info = inputs[alias]
    expected = tf.as_dtype(info.dtype)
    dtype = tf.string if value.dtype.kind in "OSU" else tf.as_dtype(value.dtype)
    if dtype != expected:
        raise invalid(f"input {alias}: expects {expected.name}, but {dtype.name} is provided")
    shape = tf.TensorShape(info.tensor_shape)
    if not shape.is_compatible_with(value.shape):
        raise invalid(f"input {alias}: expects shape {shape}, but {list(value.shape)} is provided")


def from_proto(alias: str, tensor: TensorProto) -> npt.NDArray[Any]:
    """A tensor of a request as an array; RequestError if it is not valid."""
    try:
        dtype = tf.as_dtype(tensor.dtype)
        cells = 1
        for dim in tensor.tensor_shape.dim:
            cells *= dim.size
        if cells < 0 or cells * (dtype.size or 1) > MAX_BYTES:
            raise ValueError(f"shape {[d.size for d in tensor.tensor_shape.dim]} is more than {MAX_BYTES} bytes")
        return np.asarray(tf.make_ndarray(tensor))
    except (ValueError, TypeError, KeyError) as e:
        raise invalid(f"tensor parsing error: {alias}: {e}") from e


def to_proto(value: npt.NDArray[Any]) -> TensorProto:
    """An array as a tensor, with its numbers as bytes: a list of numbers is slow."""
    value = np.asarray(value)
    if value.dtype.kind in "OSU":
        return tf.make_tensor_proto(value)
    tensor = TensorProto(dtype=tf.as_dtype(value.dtype).as_datatype_enum, tensor_content=value.tobytes())
    for size in value.shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor
