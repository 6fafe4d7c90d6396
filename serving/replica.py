"""The client of one replica: calls the signatures of a version, and reads which versions are AVAILABLE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import grpc
import numpy.typing as npt

from serving import client

CALL_S = 30.0
"""The limit of one call. A chunk takes milliseconds: a replica that needs longer counts as down."""
AVAILABLE, END = 30, 50  # of ModelVersionStatus


class Down(RuntimeError):
    """The replica does not answer, or does not serve the version."""


class RefusedCall(RuntimeError):
    """The replica refused the call and changed nothing."""


class Status(NamedTuple):
    """The newest delta that a version serves; table -> its rows, and table -> the rows that fit before it must grow."""

    lineage: str
    seq: int
    learned_until_ms: int
    sizes: dict[str, int]
    capacities: dict[str, int]


class Replica:
    """One model at one address."""

    def __init__(self, address: str, model: str) -> None:
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        self.address, self.model = address, model
        self._channel = client.channel(address)
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def versions(self) -> tuple[list[int], dict[int, str]]:
        """Returns the AVAILABLE versions, and version -> its error of those that failed to load; Down if the replica
        does not answer."""
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        try:
            states = self._models.GetModelStatus(request, timeout=CALL_S).model_version_status
        except grpc.RpcError as e:
            if e.code() == grpc.StatusCode.NOT_FOUND:  # the server runs, without a version yet
                return [], {}
            raise Down(f"{self.address}: {e.code().name}: {e.details()}") from e
        failed = [v for v in states if v.status.error_code and v.state == END]
        errors = {v.version: " ".join(v.status.error_message.split()) for v in failed}  # TensorFlow's have lines
        return [v.version for v in states if v.state == AVAILABLE], errors

    def call(self, version: int, signature: str, arrays: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Calls `signature` of exactly this version; Down or RefusedCall."""
        request = client.predict_request(self.model, signature, arrays)
        request.model_spec.version.value = version
        try:
            answer = self._predict.Predict(request, timeout=CALL_S)
        except grpc.RpcError as e:
            text = f"{self.address}: {signature}: {e.code().name}: {e.details()}"
            refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
            raise (RefusedCall if e.code() in refused else Down)(text) from e
        return {name: client.array(value) for name, value in answer.outputs.items()}

    def status(self, version: int) -> Status:
        """Calls the `status` signature of a version."""
        answer = self.call(version, "status", {})

        def by_table(suffix: str) -> dict[str, int]:
            return {n.removesuffix(suffix): int(v) for n, v in answer.items() if n.endswith(suffix)}

        return Status(
            answer["lineage"].item().decode(), int(answer["seq"]), int(answer["learned_until_ms"]),
            by_table("_size"), by_table("_capacity"),
        )  # fmt: skip

    def digest(self, version: int) -> dict[str, str]:
        return {name: str(int(value)) for name, value in self.call(version, "digest", {}).items()}
