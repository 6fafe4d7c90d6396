"""A model server of one's own making: gRPC Predict, answered by a function of the test."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from serving.client import array, light, tensor
from tests.support.ports import free_port

LINEAGE = "000001-0a1b2c3d"


class GrpcReplica:
    """Scores a row by its `product` for the task `buy`. `stop` ends it like a kill; `start` begins it again."""

    def __init__(self) -> None:
        self.port, self.seq, self.calls = free_port(), 3, 0
        self.address = f"127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        light()
        from tensorflow_serving.apis import predict_pb2
        from tensorflow_serving.apis import prediction_service_pb2_grpc as rpc

        replica = self

        class Servicer(rpc.PredictionServiceServicer):
            def Predict(self, request: Any, context: Any) -> Any:
                replica.calls += 1
                arrays = {name: array(value) for name, value in request.inputs.items()}
                answer = replica.status() if request.model_spec.signature_name == "status" else replica.scores(arrays)
                return predict_pb2.PredictResponse(outputs={name: tensor(v) for name, v in answer.items()})

        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        rpc.add_PredictionServiceServicer_to_server(Servicer(), self._server)
        assert self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def status(self) -> Mapping[str, Any]:
        return {"lineage": LINEAGE, "seq": np.int64(self.seq), "learned_until_ms": np.int64(1000 * self.seq)}

    def scores(self, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        products = arrays["product"]
        return {"buy": (products % 1000 / 1000).astype(np.float32), "seq": np.full(len(products), self.seq)}
