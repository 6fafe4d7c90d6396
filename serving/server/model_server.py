"""Serves models by TensorFlow Serving's API, on machines without tensorflow_model_server.

    python -m serving.server.model_server --port 8500 --rest_api_port 8501 --model_config_file models.config

All flags of tensorflow_model_server are accepted; those without effect here are named in the log (flags.py). It adds
--host and bounds of REST (rest/connections.py). It answers PredictionService, ModelService and the health service; over
REST it answers predict, classify, regress, status and metadata. It batches no requests, and its metrics are few. It
listens on loopback unless --host names another address. After SIGTERM it takes no new requests, answers those that have
begun, and exits with 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow's library is loaded
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it warns about int64 on each CPU without AVX-512

if __name__ == "__main__":
    from serving.client import light

    light()  # TensorFlow's library is enough, without its Python

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
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
from serving.server import examples, flags
from serving.server.config import ConfigFile, check_config, read_config
from serving.server.metrics import ServerMetrics
from serving.server.rest.api import RestServer
from serving.server.rest.http_requests import Limits
from serving.server.runtime.servable import RequestError, invalid, request_error
from serving.server.runtime.session import MAX_BYTES, library
from serving.server.runtime.tensors import to_proto
from serving.server.versions import Models

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


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    def __init__(self, models: Models, metrics: ServerMetrics, content: bool) -> None:
        self._models, self._metrics, self._content = models, metrics, content

    @answer
    def Predict(self, request: Any) -> predict_pb2.PredictResponse:
        signature = request.model_spec.signature_name or "serving_default"
        reply = predict_pb2.PredictResponse()
        with self._metrics.predict(self._models.label(request.model_spec.name), "GRPC"):
            with self._models.use(request.model_spec) as servable:
                outputs = servable.run(signature, request.inputs, request.output_filter)
                servable.name_in(reply.model_spec, signature)
            for alias, value in outputs.items():
                to_proto(value, reply.outputs[alias], self._content)
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
    def __init__(self, models: Models) -> None:
        self._models = models

    @answer
    def HandleReloadConfigRequest(self, request: Any) -> model_management_pb2.ReloadConfigResponse:
        self._models.reload(request.config)
        return model_management_pb2.ReloadConfigResponse(status={})

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


@dataclass(frozen=True)
class GrpcOptions:
    """What flags set: numbers as bytes, a UNIX socket, arguments of gRPC's server, and keys for TLS."""

    content: bool = False
    socket: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    credentials: grpc.ServerCredentials | None = None


def grpc_server(
    models: Models, metrics: ServerMetrics, host: str, port: int, workers: int, options: GrpcOptions | None = None
) -> grpc.Server:
    options = options or GrpcOptions()
    arguments = [
        ("grpc.max_receive_message_length", MAX_BYTES), ("grpc.max_send_message_length", MAX_BYTES),
        ("grpc.so_reuseport", 0),  # else a second server could take half of the requests
        *options.arguments,
    ]  # fmt: skip
    server = grpc.server(ThreadPoolExecutor(workers, thread_name_prefix="grpc"), options=arguments)
    prediction = Prediction(models, metrics, options.content)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(models), server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(models), server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if port and options.credentials:
            server.add_secure_port(address, options.credentials)
        elif port:
            server.add_insecure_port(address)
    except RuntimeError as e:
        raise InputError(f"--port {port}: cannot listen on {address}, it is in use or not an address of ours") from e
    try:
        if options.socket:
            server.add_insecure_port(f"unix:{options.socket}")
    except RuntimeError as e:
        raise InputError(f"--grpc_socket_path {options.socket}: cannot listen on it") from e
    return server


def config_of(args: argparse.Namespace) -> ModelServerConfig:
    if args.model_config_file:
        return read_config(args.model_config_file)
    config = ModelServerConfig()
    config.model_config_list.config.add(name=args.model_name, base_path=str(args.model_base_path.absolute()))
    check_config(config)
    return config


def serve(args: argparse.Namespace) -> None:
    """Serves the models until the process is told to end."""
    if args.version:
        print(f"TensorFlow Library: {library().Version().decode()}")
        return
    idle = [f"--{name}" for name in flags.WITHOUT_EFFECT if getattr(args, name) is not None]
    if idle:
        log.warning("without effect here: %s", ", ".join(idle))
    try:
        models = Models(config_of(args), flags.following(args), flags.load_options(args))
    except RequestError as e:
        raise InputError(e.text) from e
    metrics = ServerMetrics()
    options = GrpcOptions(
        args.enable_serialization_as_tensor_content, args.grpc_socket_path, tuple(args.grpc_channel_arguments),
        flags.credentials(args.ssl_config_file) if args.ssl_config_file else None,
    )  # fmt: skip
    server = grpc_server(models, metrics, args.host, args.port, args.grpc_max_threads, options)
    limits = Limits(
        args.rest_api_max_connections, args.rest_api_num_threads, args.rest_api_max_rows,
        args.rest_api_max_body_bytes, args.rest_api_timeout_in_ms / 1000,
    )  # fmt: skip
    rest = RestServer(models, metrics, args.host, args.rest_api_port, limits) if args.rest_api_port else None
    file = None
    if args.model_config_file and args.model_config_file_poll_wait_seconds > 0:
        file = ConfigFile(args.model_config_file, args.model_config_file_poll_wait_seconds, models.reload)
    stopping = process.stopping()
    models.start()
    server.start()
    for part in (rest, file):
        if part:
            part.start()
    log.info("%s: gRPC on port %d, REST on %s", args.host, args.port, f"port {rest.port}" if rest else "no port")
    stopping.wait()
    log.info("ending: answers the requests that have begun")
    server.stop(DRAIN_S).wait()
    for part in (rest, file):
        if part:
            part.close()
    models.close()


def main(argv: list[str] | None = None) -> int:
    args = flags.parse(argv, __doc__)
    return process.run(lambda: serve(args))


if __name__ == "__main__":
    sys.exit(main())
