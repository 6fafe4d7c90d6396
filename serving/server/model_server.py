"""Serves models by TensorFlow Serving's API, on machines without tensorflow_model_server.

    python -m serving.server.model_server --port 8500 --rest_api_port 8501 --model_config_file models.config

The flags are those of tensorflow_model_server, and a few more: --host, and bounds of REST (connections.py). It answers
PredictionService, ModelService.GetModelStatus, the health service, and over REST predict, classify, regress, status and
metadata; the rest is UNIMPLEMENTED. It listens on loopback unless --host names another address. After
SIGTERM it takes no new requests, answers those that have begun, and exits with 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it warns about int64 on each CPU without AVX-512

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.apis.classification_pb2 import ClassificationResponse
from tensorflow_serving.apis.inference_pb2 import MultiInferenceResponse
from tensorflow_serving.apis.regression_pb2 import RegressionResponse
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from common import process
from common.errors import InputError
from serving.server import examples
from serving.server.http_requests import Limits
from serving.server.metrics import ServerMetrics
from serving.server.rest import RestServer
from serving.server.servable import MAX_BYTES, RequestError, from_proto, invalid, request_error, to_proto
from serving.server.versions import Models, read_config

log = process.logger("serving.server.model_server")

DRAIN_S = 10.0
"""The time that requests have after SIGTERM."""


def answer(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
    """A call of a gRPC service: `method` returns the reply, its error becomes the code and text of the call."""

    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request)
        except Exception as e:
            error = request_error(e)
            context.abort(error.code, error.text)

    return call


def unserved(name: str) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
    """A call that is refused. The generated base class would do it too, and log a traceback each time."""

    @answer
    def refuse(self: Any, request: Any) -> None:
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not served here, Predict is")

    return refuse


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    def __init__(self, models: Models, metrics: ServerMetrics) -> None:
        self._models, self._metrics = models, metrics

    @answer
    def Predict(self, request: Any) -> predict_pb2.PredictResponse:
        signature = request.model_spec.signature_name or "serving_default"
        reply = predict_pb2.PredictResponse()
        with self._metrics.predict(self._models.label(request.model_spec.name), "GRPC"):
            with self._models.use(request.model_spec) as servable:
                inputs = {alias: from_proto(alias, tensor) for alias, tensor in request.inputs.items()}
                outputs = servable.run(signature, inputs, request.output_filter)
                servable.name_in(reply.model_spec, signature)
            for alias, value in outputs.items():
                reply.outputs[alias].CopyFrom(to_proto(value))
        return reply

    @answer
    def Classify(self, request: Any) -> ClassificationResponse:
        with self._metrics.predict(self._models.label(request.model_spec.name), "GRPC", "Classify"):
            return examples.classify(self._models, request)

    @answer
    def Regress(self, request: Any) -> RegressionResponse:
        with self._metrics.predict(self._models.label(request.model_spec.name), "GRPC", "Regress"):
            return examples.regress(self._models, request)

    @answer
    def MultiInference(self, request: Any) -> MultiInferenceResponse:
        name = request.tasks[0].model_spec.name if request.tasks else ""
        with self._metrics.predict(self._models.label(name), "GRPC", "MultiInference"):
            return examples.multi_inference(self._models, request)

    @answer
    def GetModelMetadata(self, request: Any) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return self._models.metadata(request)


class Status(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    HandleReloadConfigRequest = unserved("HandleReloadConfigRequest")

    def __init__(self, models: Models) -> None:
        self._models = models

    @answer
    def GetModelStatus(self, request: Any) -> get_model_status_pb2.GetModelStatusResponse:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        statuses = self._models.status(request.model_spec)
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=statuses)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The server is SERVING once every model has a version that is AVAILABLE."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @answer
    def Check(self, request: Any) -> health_pb2.HealthCheckResponse:
        if request.service:
            text = f"no service {request.service!r}: ask for the whole server"
            raise RequestError(grpc.StatusCode.NOT_FOUND, text)
        state = health_pb2.HealthCheckResponse
        return state(status=state.SERVING if self._models.serving() else state.NOT_SERVING)


def grpc_server(models: Models, metrics: ServerMetrics, host: str, port: int, workers: int) -> grpc.Server:
    options = [
        ("grpc.max_receive_message_length", MAX_BYTES), ("grpc.max_send_message_length", MAX_BYTES),
        ("grpc.so_reuseport", 0),  # else a second server could take half of the requests
    ]  # fmt: skip
    server = grpc.server(ThreadPoolExecutor(workers, thread_name_prefix="grpc"), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(models, metrics), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(models), server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(models), server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError as e:
        raise InputError(f"--port {port}: cannot listen on {address}, it is in use or not an address of ours") from e
    return server


def serve(args: argparse.Namespace) -> None:
    """Serves the models until the process is told to end."""
    config = read_config(args.model_config_file) if args.model_config_file else ModelServerConfig()
    if args.model_base_path:
        config.model_config_list.config.add(name=args.model_name, base_path=str(args.model_base_path))
    threads = (args.tensorflow_intra_op_parallelism, args.tensorflow_inter_op_parallelism)
    models, metrics = Models(config, args.file_system_poll_wait_seconds, threads), ServerMetrics()
    server = grpc_server(models, metrics, args.host, args.port, args.grpc_max_threads)
    limits = Limits(
        args.rest_api_max_connections, args.rest_api_num_threads, args.rest_api_max_rows,
        args.rest_api_max_body_bytes, args.rest_api_timeout_in_ms / 1000,
    )  # fmt: skip
    rest = RestServer(models, metrics, args.host, args.rest_api_port, limits) if args.rest_api_port else None
    stopping = process.stopping()
    models.start()
    server.start()
    if rest:
        rest.start()
    log.info("%s: gRPC on port %d, REST on %s", args.host, args.port, f"port {rest.port}" if rest else "no port")
    stopping.wait()
    log.info("ending: answers the requests that have begun")
    server.stop(DRAIN_S).wait()
    if rest:
        rest.close()
    models.close()


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("serving.server.model_server", __doc__)
    flag, shown = parser.add_argument, "(default: %(default)s)"
    flag("--host", default="127.0.0.1", help=f"the address to listen on {shown}")
    flag("--port", type=int, default=8500, help=f"gRPC {shown}")
    flag("--rest_api_port", type=int, default=0, help="REST; 0 (the default): none")
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model_config_file", type=Path, help="several models: a ModelServerConfig in text form")
    models.add_argument("--model_base_path", type=Path, help="one model: the folder of its versions")
    flag("--model_name", default="default", help=f"one model: its name {shown}")
    flag("--file_system_poll_wait_seconds", type=process.above(0.0), default=1.0, metavar="S",
         help=f"the pause between two looks at the folders {shown}")  # fmt: skip
    flag("--grpc_max_threads", type=int, default=4, help=f"requests at the same time {shown}")
    flag("--tensorflow_intra_op_parallelism", type=int, default=1, help=f"threads of one op {shown}")
    flag("--tensorflow_inter_op_parallelism", type=int, default=2, help=f"ops at the same time {shown}")
    count = process.at_least(1)
    flag("--rest_api_num_threads", type=count, default=8, help=f"REST requests computed at the same time {shown}")
    flag("--rest_api_timeout_in_ms", type=count, default=30_000, help=f"the time in which one arrives {shown}")
    flag("--rest_api_max_connections", type=count, default=128, help=f"open REST connections {shown}")
    flag("--rest_api_max_rows", type=count, default=10_000, help=f"rows of a REST request {shown}")
    flag("--rest_api_max_body_bytes", type=count, default=16 << 20, help=f"its body, unpacked {shown}")
    args = parser.parse_args(argv)
    return process.run(lambda: serve(args))


if __name__ == "__main__":
    sys.exit(main())
