"""The client of one replica: Predict calls of one version's signatures, and the versions that are AVAILABLE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import grpc
import numpy as np
import numpy.typing as npt

from serving import client

CALL_S = 30.0
"""The limit of one call. A chunk takes milliseconds, so a replica that needs longer counts as down."""
MESSAGE_BYTES = 64 << 20
AVAILABLE = 30  # ModelVersionStatus.AVAILABLE


class Down(RuntimeError):
    """Nobody answers, or the version is not served."""


class RefusedCall(RuntimeError):
    """The replica answered with an error: nothing was changed."""


class Status(NamedTuple):
    """Which delta a version serves; table -> rows in it, and rows that fit before it must grow."""

    lineage: str
    seq: int
    learned_until_ms: int
    sizes: dict[str, int]
    capacities: dict[str, int]


class Replica:
    """One model at one address."""

    def __init__(self, address: str, model: str) -> None:
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),  # a restarted replica is found soon, not after 2 minutes
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        self.address, self.model = address, model
        self._channel = grpc.insecure_channel(address, options)
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def versions(self) -> tuple[list[int], dict[int, str]]:
        """AVAILABLE versions, and version -> what is wrong with it; Down if nobody answers."""
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        try:
            states = self._models.GetModelStatus(request, timeout=CALL_S).model_version_status
        except grpc.RpcError as e:
            if e.code() == grpc.StatusCode.NOT_FOUND:  # it is up, with no version yet
                return [], {}
            raise Down(f"{self.address}: {e.code().name}: {e.details()}") from e
        broken = {int(v.version): str(v.status.error_message) for v in states if v.status.error_code}
        return [v.version for v in states if v.state == AVAILABLE], broken

    def call(self, version: int, signature: str, arrays: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Predict with `signature` of exactly this version; Down or RefusedCall."""
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(inputs={name: client.tensor(value) for name, value in arrays.items()})
        request.model_spec.name, request.model_spec.signature_name = self.model, signature
        request.model_spec.version.value = version
        try:
            answer = self._predict.Predict(request, timeout=CALL_S)
        except grpc.RpcError as e:
            text = f"{self.address}: {signature}: {e.code().name}: {e.details()}"
            refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
            raise (RefusedCall if e.code() in refused else Down)(text) from e
        return {name: client.array(value) for name, value in answer.outputs.items()}

    def status(self, version: int) -> Status:
        """What the `status` signature of a version answers."""
        answer = self.call(version, "status", {})

        def ending(suffix: str) -> dict[str, int]:
            return {n.removesuffix(suffix): int(v) for n, v in answer.items() if n.endswith(suffix)}

        return Status(
            answer["lineage"].item().decode(), int(answer["seq"]), int(answer["learned_until_ms"]),
            ending("_size"), ending("_capacity"),
        )  # fmt: skip

    def digest(self, version: int) -> dict[str, str]:
        return {name: str(int(value)) for name, value in self.call(version, "digest", {}).items()}


def scalar(value: int) -> npt.NDArray[np.int64]:
    return np.array(value, np.int64)
