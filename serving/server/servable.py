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
"""Of a message, and of a tensor in it: a shape of 10^12 with one value is a small message."""
MAX_WARM_UP_RECORDS = 1000  # TensorFlow Serving's own limit

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Refused(Exception):
    """A request that gets an error for an answer: a code of gRPC's, and TensorFlow Serving's text."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


def invalid(text: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def refusal(error: Exception) -> Refused:
    """`error` as an answer: TensorFlow's codes are gRPC's."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, tf.errors.OpError):
        return Refused(_CODES[error.error_code], error.message)
    return Refused(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


class Signature(NamedTuple):
    """Alias -> TensorInfo of what goes in and comes out."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]


class Servable:
    """`path` loaded. Requests `use` it; `close` waits for them, so that no session is closed under a call."""

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
                n: Signature(dict(s.inputs), dict(s.outputs))
                for n, s in self.signature_defs.items() if n != "__saved_model_init_op"
            }  # fmt: skip
            self._warm_up(path / "assets.extra" / "tf_serving_warmup_requests")
        except BaseException:
            self._session.close()
            raise

    def name_in(self, spec: Any, signature: str = "") -> None:
        """What a reply says of the version that made it."""
        spec.name, spec.signature_name = self.name, signature
        spec.version.value = self.version

    @contextmanager
    def use(self) -> Iterator[bool]:
        """Holds the version loaded; yields False if it is on its way out already."""
        with self._idle:
            open_ = not self._closing
            self._users += open_
        try:
            yield open_
        finally:
            with self._idle:
                self._users -= open_
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
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, text) from None

    def run(
        self, signature: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, npt.NDArray[Any]]:
        """Run `signature` for the aliases `outputs` (none: for all of them)."""
        known = self.signature(signature)
        if len(inputs) != len(known.inputs):
            sent, needed = sorted(inputs), sorted(known.inputs)
            raise invalid(
                f"input size does not match signature: {len(sent)}!={len(needed)} "
                f"len({{{','.join(sent)}}}) != len({{{','.join(needed)}}}). "
                f"Sent extra: {{{','.join(sorted(set(sent) - set(needed)))}}}. "
                f"Missing but required: {{{','.join(sorted(set(needed) - set(sent)))}}}."
            )
        for alias, value in inputs.items():
            _check_input(alias, value, known.inputs)
        for alias in outputs:
            if alias not in known.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                    f"{{{','.join(sorted(known.outputs))}}}."
                )
            if list(outputs).count(alias) > 1:
                raise invalid(f"duplicate output tensor alias: {alias}")
        wanted = tuple(outputs) or tuple(sorted(known.outputs))
        call = self._callables.get((signature, wanted))
        if call is None:  # two threads may both make it: the same
            feeds = [known.inputs[a].name for a in sorted(known.inputs)]
            call = self._session.make_callable([known.outputs[a].name for a in wanted], feeds)
            self._callables[signature, wanted] = call
        return dict(zip(wanted, call(*(inputs[a] for a in sorted(inputs))), strict=True))

    def _warm_up(self, records: Path) -> None:
        """What is to run before the version may be AVAILABLE; an error in it is an error of the load."""
        if not records.exists():
            return
        for i, record in enumerate(tf.data.TFRecordDataset(str(records))):
            if i == MAX_WARM_UP_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_WARM_UP_RECORDS}) at {records}")
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            if log.WhichOneof("log_type") != "predict_log":
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {log}")
            request = log.predict_log.request
            inputs = {alias: from_proto(alias, t) for alias, t in request.inputs.items()}
            self.run(request.model_spec.signature_name or "serving_default", inputs)


def _check_input(alias: str, value: npt.NDArray[Any], known: Mapping[str, Any]) -> None:
    if alias not in known:
        raise invalid(
            f"input tensor alias not found in signature: {alias}. Inputs expected to be in the set "
            f"{{{','.join(sorted(known))}}}."
        )
    info = known[alias]
    expected = tf.as_dtype(info.dtype)
    found = tf.string if value.dtype.kind in "OSU" else tf.as_dtype(value.dtype)
    if found != expected:
        raise invalid(f"input {alias}: expects {expected.name}, but {found.name} is provided")
    shape = tf.TensorShape(info.tensor_shape)
    if not shape.is_compatible_with(value.shape):
        raise invalid(f"input {alias}: expects shape {shape}, but {list(value.shape)} is provided")


def from_proto(alias: str, tensor: TensorProto) -> npt.NDArray[Any]:
    """The array of a tensor that came in; Refused if it cannot be one."""
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
    """As bytes (--enable_serialization_as_tensor_content of TensorFlow Serving): a list of numbers is slow."""
    value = np.asarray(value)
    if value.dtype.kind in "OSU":
        return tf.make_tensor_proto(value)
    tensor = TensorProto(dtype=tf.as_dtype(value.dtype).as_datatype_enum, tensor_content=value.tobytes())
    for size in value.shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor
