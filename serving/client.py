"""A small client that scores over gRPC: TensorFlow Serving's Predict, without TensorFlow.

`import tensorflow_serving.apis` imports all of TensorFlow (seconds, 0.6 GB) for a few messages. A process that never
uses TensorFlow calls `light()` first: then the import takes half a second and 40 MB.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from serving import tls
from streaming.declaration import INT64_MIN, Declaration

PADDING = INT64_MIN
DEADLINE_S = 10.0
"""A prediction fails after this time without an answer."""
_ATTEMPT_S = 3.0
"""After this time without an answer the call goes to the next replica: this one may be stopped."""
_MAX_MESSAGE = 2**31 - 1
_OTHER_REPLICA = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.CANCELLED,
)
"""Errors after which the next replica is asked. NOT_FOUND: a replica that has just started still loads its version.
CANCELLED: a replica ended in the middle of the call."""
_DTYPE: dict[int, Any] = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 10: np.bool_}
_FIELD = {1: "float_val", 2: "double_val", 3: "int_val", 9: "int64_val", 10: "bool_val"}
_STRING = 7


class PredictionFailed(InputError):
    """No replica answered within the deadline, or one refused the call; the text has each replica's last error."""


def light() -> None:
    """Lets `tensorflow_serving.apis` be imported without TensorFlow. Not for a process that uses TensorFlow later."""
    if "tensorflow" in sys.modules:
        return
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("tensorflow is not installed: its message definitions are needed, run `make setup`")
    # An empty module with the package's path: its message modules can be imported, and its __init__ never runs.
    empty = ModuleType("tensorflow")
    empty.__path__ = list(spec.submodule_search_locations)
    sys.modules["tensorflow"] = empty


def pad(lists: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Lists of ids as int64[n, L], padded with int64 min. L is the length of the longest list, at least 1."""
    padded = np.full((len(lists), max([1, *map(len, lists)])), PADDING, np.int64)
    for row, ids in enumerate(lists):
        padded[row, : len(ids)] = ids
    return padded


def inputs(rows: Sequence[Mapping[str, Any]], declaration: Declaration) -> dict[str, NDArray[Any]]:
    """Feature dicts as the inputs of `serving_default`; a missing feature gets its declared default."""
    arrays: dict[str, NDArray[Any]] = {}
    for f in declaration.served:
        values: list[Any] = [f.default if row.get(f.name) is None else row[f.name] for row in rows]
        if f.kind == "ids":
            arrays[f.name] = pad(values)
        else:
            arrays[f.name] = np.array(values, np.int64 if f.kind == "id" else np.float32)
    return arrays


def _absent(info: Any, n: int) -> NDArray[Any]:
    """The value of a feature that nobody sent, for n rows: 0, or an empty list."""
    return np.full((n, 1), PADDING) if len(info.tensor_shape.dim) == 2 else np.zeros(n, _DTYPE[info.dtype])


def tensor(value: Any) -> Any:
    """An array or a string as a TensorProto, with numbers as bytes in `tensor_content`."""
    from tensorflow.core.framework import tensor_pb2

    if isinstance(value, (str, bytes)):
        return tensor_pb2.TensorProto(
            dtype=_STRING, tensor_shape={}, string_val=[value.encode() if isinstance(value, str) else value]
        )
    array = np.asarray(value)
    for number, dtype in _DTYPE.items():
        if array.dtype == dtype:
            shape = {"dim": [{"size": size} for size in array.shape]}
            return tensor_pb2.TensorProto(dtype=number, tensor_shape=shape, tensor_content=array.tobytes())
    raise TypeError(f"a tensor of {array.dtype}; allowed are {', '.join(np.dtype(d).name for d in _DTYPE.values())}")


def array(proto: Any) -> NDArray[Any]:
    """A TensorProto as an array. Servers send numbers as bytes or as a list."""
    shape = [d.size for d in proto.tensor_shape.dim]
    if proto.dtype == _STRING:
        values = np.empty(len(proto.string_val), object)
        values[:] = list(proto.string_val)
        return values.reshape(shape)
    dtype = _DTYPE[proto.dtype]
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = np.array(getattr(proto, _FIELD[proto.dtype]), dtype)
    # A list may end at the first of equal values: the last one is repeated.
    size = int(np.prod(shape))
    return np.concatenate([values, np.full(size - len(values), values[-1] if len(values) else 0, dtype)]).reshape(shape)


def channel(address: str) -> grpc.Channel:
    """A channel to a model server, encrypted if the environment asks for it (tls.py).

    It reaches a restarted server soon, not after gRPC's 2 minutes.
    """
    sizes = {"grpc.max_receive_message_length": _MAX_MESSAGE, "grpc.max_send_message_length": _MAX_MESSAGE}
    backoff = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 500}
    options = list((sizes | backoff).items())
    if (credentials := tls.credentials()) is not None:
        return grpc.secure_channel(address, credentials, options)
    return grpc.insecure_channel(address, options)


def predict_request(model: str, signature: str, arrays: Mapping[str, Any]) -> Any:
    """The PredictRequest of a call."""
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest(inputs={name: tensor(value) for name, value in arrays.items()})
    request.model_spec.name, request.model_spec.signature_name = model, signature
    return request


class Scorer:
    """Asks one model of one or several replicas. It is not thread-safe: each thread needs its own.

    `addresses` are "host:port". A call begins with the replica that answered last. If that one is unavailable or does
    not answer, the call goes to the next one, again and again, until `timeout` seconds have passed.
    """

    def __init__(
        self, addresses: Sequence[str], model: str, declaration: Declaration, timeout: float = DEADLINE_S
    ) -> None:
        if not addresses:
            raise ValueError("serving is empty, allowed is host:port, or several with commas between them")
        from tensorflow_serving.apis import prediction_service_pb2_grpc as rpc

        self.addresses, self.model, self.declaration, self.timeout = list(addresses), model, declaration, timeout
        self._channels = [channel(address) for address in addresses]
        self._stubs = [rpc.PredictionServiceStub(channel) for channel in self._channels]
        self._first = 0

    @property
    def replica(self) -> int:
        """The index in `addresses` of the replica that answered last."""
        return self._first

    def score(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[float]], int]:
        """Returns each task's probability for each row of features, and the seq of the delta that scored them.

        Raises PredictionFailed after `timeout` seconds without an answer, or when the call itself is refused. When a
        source grows, the model may be of the declaration before or after this one: a task that it lacks has no score, a
        feature that only the model has reads 0 or an empty list (docs/growing.md).
        """
        arrays = inputs(rows, self.declaration)
        try:
            answer = self.call("serving_default", arrays)
        except PredictionFailed as e:
            if grpc.StatusCode.INVALID_ARGUMENT.name not in str(e):
                raise
            served = self._inputs_of_model()
            if not served or served.keys() == arrays.keys():
                raise
            absent = {name: _absent(info, len(rows)) for name, info in served.items() if name not in arrays}
            answer = self.call("serving_default", {n: a for n, a in arrays.items() if n in served} | absent)
        seq = answer["seq"].ravel()
        scores = {task: answer[task].ravel().tolist() for task in self.declaration.tasks if task in answer}
        return scores, int(seq[0]) if len(seq) else -1

    def _inputs_of_model(self) -> dict[str, Any]:
        """The inputs of `serving_default` of the model that refused a call, as TensorInfos; empty without an answer."""
        from tensorflow_serving.apis import get_model_metadata_pb2 as messages

        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self.model
        signatures = messages.SignatureDefMap()
        try:
            reply = self._stubs[self._first].GetModelMetadata(request, timeout=self.timeout)
        except grpc.RpcError:
            return {}
        reply.metadata["signature_def"].Unpack(signatures)
        return dict(signatures.signature_def["serving_default"].inputs)

    def status(self, replica: int = 0) -> dict[str, Any]:
        """Calls the `status` signature of one replica: lineage, seq, learned_until_ms, the sizes of each table."""
        answer = self.call("status", {}, only=replica)
        scalars = {name: value.ravel()[0] for name, value in answer.items()}
        return {name: v.decode() if isinstance(v, bytes) else v.item() for name, v in scalars.items()}

    def call(self, signature: str, arrays: Mapping[str, Any], only: int | None = None) -> dict[str, NDArray[Any]]:
        """Calls any signature; raises PredictionFailed. `only`: one attempt at this replica, as a write needs it."""
        request = predict_request(self.model, signature, arrays)
        end = time.monotonic() + self.timeout
        replicas = [only] if only is not None else [*range(self._first, len(self._stubs)), *range(self._first)]
        errors: dict[str, str] = {}
        for attempt, replica in enumerate(itertools.cycle(replicas)):
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                attempt_s = left if only is not None else min(left, _ATTEMPT_S)
                answer = self._stubs[replica].Predict(request, timeout=attempt_s)
            except grpc.RpcError as e:
                errors[self.addresses[replica]] = f"{e.code().name}: {e.details()}"
                if only is not None or e.code() not in _OTHER_REPLICA:
                    break
                if attempt % len(replicas) == len(replicas) - 1:
                    time.sleep(min(0.05, max(0.0, end - time.monotonic())))
                continue
            if only is None:
                self._first = replica
            return {name: array(value) for name, value in answer.outputs.items()}
        reasons = "; ".join(f"{address} {error}" for address, error in errors.items()) or "no time was left to ask"
        raise PredictionFailed(f"model {self.model}, signature {signature}: {reasons}")

    def close(self) -> None:
        for each in self._channels:
            each.close()
