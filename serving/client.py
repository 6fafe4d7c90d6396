"""The small client that scores over gRPC: TensorFlow Serving's Predict, without TensorFlow.

Importing `tensorflow_serving.apis` pulls in all of TensorFlow (seconds, 0.6 GB) for a few messages. A process that
never uses TensorFlow calls `light()` first: half a second, 40 MB, the same messages and stubs.
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

from streaming.declaration import INT64_MIN, Declaration

PADDING = INT64_MIN
DEADLINE_S = 10.0
"""A prediction without an answer after this long has failed."""
_ATTEMPT_S = 3.0
"""A replica that takes the call and says nothing (killed, or stopped) is left for the next one after this long."""
_MAX_MESSAGE = 2**31 - 1
_OTHER_REPLICA = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.NOT_FOUND)
"""NOT_FOUND: a replica that has just started serves the version only when its warm-up is through."""
_DTYPE: dict[int, Any] = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 10: np.bool_}
_FIELD = {1: "float_val", 2: "double_val", 3: "int_val", 9: "int64_val", 10: "bool_val"}
_STRING = 7


class PredictionFailed(RuntimeError):
    """No replica answered within the deadline, or one refused the call; the text names each replica's last word."""


def light() -> None:
    """Makes `tensorflow_serving.apis` importable without TensorFlow: never in a process that uses TensorFlow itself."""
    if "tensorflow" in sys.modules:
        return
    found = importlib.util.find_spec("tensorflow")
    if found is None or not found.submodule_search_locations:
        raise ImportError("tensorflow is not installed: its message definitions are needed, run `make setup`")
    # An empty module with the package's path: its generated messages import, its __init__ never runs.
    empty = ModuleType("tensorflow")
    empty.__path__ = list(found.submodule_search_locations)
    sys.modules["tensorflow"] = empty


def pad(lists: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Lists of ids as int64[n, L], L the longest one's length (at least 1), filled up with int64 min."""
    padded = np.full((len(lists), max([1, *map(len, lists)])), PADDING, np.int64)
    for row, ids in enumerate(lists):
        padded[row, : len(ids)] = ids
    return padded


def inputs(rows: Sequence[Mapping[str, Any]], declaration: Declaration) -> dict[str, NDArray[Any]]:
    """Feature dicts as the inputs of `serving_default`; an absent feature takes its declared default."""
    arrays: dict[str, NDArray[Any]] = {}
    for f in declaration.features:
        values: list[Any] = [f.default if row.get(f.name) is None else row[f.name] for row in rows]
        if f.kind == "ids":
            arrays[f.name] = pad(values)
        else:
            arrays[f.name] = np.array(values, np.int64 if f.kind == "id" else np.float32)
    return arrays


def tensor(value: Any) -> Any:
    """A TensorProto of an array or a string, numbers as raw bytes in `tensor_content`."""
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
    """The array of a TensorProto, whichever of its two forms the server chose."""
    shape = [d.size for d in proto.tensor_shape.dim]
    if proto.dtype == _STRING:
        values = np.empty(len(proto.string_val), object)
        values[:] = list(proto.string_val)
        return values.reshape(shape)
    dtype = _DTYPE[proto.dtype]
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = np.array(getattr(proto, _FIELD[proto.dtype]), dtype)
    # The list form may leave out a tail of equal values.
    size = int(np.prod(shape))
    return np.concatenate([values, np.full(size - len(values), values[-1] if len(values) else 0, dtype)]).reshape(shape)


class Scorer:
    """Asks one model of one or several replicas. Not for several threads at once: make one for each.

    `addresses` are "host:port". A call begins at the replica that answered last; on UNAVAILABLE (and silence) it goes
    on to the next one, round and round, until `timeout` seconds are over.
    """

    def __init__(
        self, addresses: Sequence[str], model: str, declaration: Declaration, timeout: float = DEADLINE_S
    ) -> None:
        if not addresses:
            raise ValueError("serving is empty, allowed is host:port, or several with commas between")
        from tensorflow_serving.apis import (
            prediction_service_pb2_grpc as rpc,
        )

        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            # A killed replica is tried again soon after it is back, not after gRPC's 2 minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        self.addresses, self.model, self.declaration, self.timeout = list(addresses), model, declaration, timeout
        self._channels = [grpc.insecure_channel(address, options) for address in addresses]
        self._stubs = [rpc.PredictionServiceStub(channel) for channel in self._channels]
        self._first = 0

    @property
    def replica(self) -> int:
        """The place in `addresses` of the replica that answered last."""
        return self._first

    def score(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[float]], int]:
        """The probability of each task for each row of features, and the seq of the state that scored them.

        Raises PredictionFailed after `timeout` seconds without an answer, or when the call itself is refused.
        """
        answer = self.call("serving_default", inputs(rows, self.declaration))
        seq = answer["seq"].ravel()
        return {task: answer[task].ravel().tolist() for task in self.declaration.tasks}, int(seq[0]) if len(seq) else -1

    def status(self, replica: int = 0) -> dict[str, Any]:
        """What the `status` signature of one replica says: lineage, seq, learned_until_ms, rows of each table."""
        answer = self.call("status", {}, only=replica)
        plain = {name: value.ravel()[0] for name, value in answer.items()}
        return {name: v.decode() if isinstance(v, bytes) else v.item() for name, v in plain.items()}

    def call(
        self, signature: str, arrays: Mapping[str, Any], only: int | None = None, timeout: float | None = None
    ) -> dict[str, NDArray[Any]]:
        """A Predict call of any signature. `only`: one attempt at this replica, so that a write is sent once.

        Raises PredictionFailed.
        """
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(inputs={name: tensor(value) for name, value in arrays.items()})
        request.model_spec.name, request.model_spec.signature_name = self.model, signature
        end = time.monotonic() + (self.timeout if timeout is None else timeout)
        replicas = [only] if only is not None else [*range(self._first, len(self._stubs)), *range(self._first)]
        words: dict[str, str] = {}
        for attempt, replica in enumerate(itertools.cycle(replicas)):
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                attempt_s = left if only is not None else min(left, _ATTEMPT_S)
                answer = self._stubs[replica].Predict(request, timeout=attempt_s)
            except grpc.RpcError as e:
                words[self.addresses[replica]] = f"{e.code().name}: {e.details()}"
                if only is not None or e.code() not in _OTHER_REPLICA:
                    break
                if attempt % len(replicas) == len(replicas) - 1:
                    time.sleep(min(0.05, max(0.0, end - time.monotonic())))
                continue
            if only is None:
                self._first = replica
            return {name: array(value) for name, value in answer.outputs.items()}
        said = "; ".join(f"{address} {word}" for address, word in words.items()) or "no time was left to ask"
        raise PredictionFailed(f"model {self.model}, signature {signature}: {said}")

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
