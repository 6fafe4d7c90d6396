"""A small server of TensorFlow Serving's API, for machines without tensorflow_model_server.

    python -m serving.server.model_server --port 8500 --rest_api_port 8501 --model_config_file models.config

The flags are those of tensorflow_model_server. It answers PredictionService.Predict and GetModelMetadata,
ModelService.GetModelStatus, the health service, and over REST predict, status and metadata; the rest is UNIMPLEMENTED.
It listens on loopback only. SIGTERM: no new requests, those under way are answered, exit 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it complains of int64 on each CPU without AVX-512

import grpc
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.server.metrics import ServerMetrics
from serving.server.rest import RestServer
from serving.server.servable import MAX_BYTES, from_proto, invalid, refusal, to_proto
from serving.server.versions import Models, read_config

log = logging.getLogger("serving.server.model_server")

HOST = "127.0.0.1"
DRAIN_S = 10.0
"""How long requests under way have after SIGTERM."""

Reply = TypeVar("Reply")


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    def __init__(self, models: Models, metrics: ServerMetrics) -> None:
        self._models, self._metrics = models, metrics

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        began, status = time.perf_counter(), "OK"
        try:
            return self._predict(request)
        except Exception as e:
            refused = refusal(e)
            status = refused.code.name
            context.abort(refused.code, refused.text)
        finally:
            known = request.model_spec.name in self._models.names()  # or a client could make up endless names
            taken = (time.perf_counter() - began) * 1e6
            self._metrics.add(request.model_spec.name if known else "", "GRPC", status, taken)

    def _predict(self, request: Any) -> predict_pb2.PredictResponse:
        signature = request.model_spec.signature_name or "serving_default"
        with self._models.use(request.model_spec) as servable:
            inputs = {alias: from_proto(alias, tensor) for alias, tensor in request.inputs.items()}
            outputs = servable.run(signature, inputs, request.output_filter)
            reply = predict_pb2.PredictResponse()
            servable.name_in(reply.model_spec, signature)
        for alias, value in outputs.items():
            reply.outputs[alias].CopyFrom(to_proto(value))
        return reply

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:
        unserved(context, "Classify")

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:
        unserved(context, "Regress")

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:
        unserved(context, "MultiInference")

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return answered(context, lambda: self._models.metadata(request))


def unserved(context: grpc.ServicerContext, call: str) -> None:
    """The generated base would answer the same, and write a traceback into the log at each call."""
    context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{call} is not served here, Predict is")


class Status(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    def __init__(self, models: Models) -> None:
        self._models = models

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:
        unserved(context, "HandleReloadConfigRequest")

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        def reply() -> get_model_status_pb2.GetModelStatusResponse:
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            found = self._models.status(request.model_spec)
            return get_model_status_pb2.GetModelStatusResponse(model_version_status=found)

        return answered(context, reply)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """SERVING once every model has a version that is AVAILABLE."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.service:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}: health is of the whole server")
        state = health_pb2.HealthCheckResponse
        return state(status=state.SERVING if self._models.serving() else state.NOT_SERVING)


def answered(context: grpc.ServicerContext, reply: Callable[[], Reply]) -> Reply:
    try:
        return reply()
    except Exception as e:
        refused = refusal(e)
        context.abort(refused.code, refused.text)
        raise


def grpc_server(models: Models, metrics: ServerMetrics, port: int, workers: int) -> grpc.Server:
    options = [
        ("grpc.max_receive_message_length", MAX_BYTES), ("grpc.max_send_message_length", MAX_BYTES),
        ("grpc.so_reuseport", 0),  # or a second server would quietly take half of the requests
    ]  # fmt: skip
    server = grpc.server(ThreadPoolExecutor(workers, thread_name_prefix="grpc"), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(models, metrics), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(models), server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(models), server)
    try:
        server.add_insecure_port(f"{HOST}:{port}")
    except RuntimeError as e:
        raise SystemExit(
            f"serving.server.model_server: --port {port}: cannot listen on {HOST}:{port}, it is in use"
        ) from e
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8500, help="gRPC (default: %(default)s)")
    parser.add_argument("--rest_api_port", type=int, default=0, help="REST; 0 (the default): none")
    parser.add_argument("--model_config_file", type=Path, help="a ModelServerConfig in text form: several models")
    parser.add_argument("--model_name", default="default", help="one model: its name (default: %(default)s)")
    parser.add_argument("--model_base_path", type=Path, help="one model: the folder of its versions")
    parser.add_argument("--file_system_poll_wait_seconds", type=float, default=1.0,
                        help="how often folders are looked at (default: %(default)s)")  # fmt: skip
    parser.add_argument("--grpc_max_threads", type=int, default=4, help="requests at a time (default: %(default)s)")
    parser.add_argument("--tensorflow_intra_op_parallelism", type=int, default=1,
                        help="threads inside one op; a request here is small (default: %(default)s)")  # fmt: skip
    parser.add_argument("--tensorflow_inter_op_parallelism", type=int, default=2, help="(default: %(default)s)")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    tf.get_logger().setLevel(logging.ERROR)  # the Session loader calls itself deprecated at each load
    if (a.model_config_file is None) == (a.model_base_path is None):
        parser.error("give either --model_config_file or --model_base_path")
    if a.file_system_poll_wait_seconds <= 0:
        parser.error(f"--file_system_poll_wait_seconds is {a.file_system_poll_wait_seconds}, allowed is more than 0")
    try:
        config = read_config(a.model_config_file) if a.model_config_file else ModelServerConfig()
    except ValueError as e:
        parser.error(str(e))
    if a.model_base_path:
        config.model_config_list.config.add(name=a.model_name, base_path=str(a.model_base_path))

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threads = (a.tensorflow_intra_op_parallelism, a.tensorflow_inter_op_parallelism)
    models, metrics = Models(config, a.file_system_poll_wait_seconds, threads), ServerMetrics()
    server = grpc_server(models, metrics, a.port, a.grpc_max_threads)
    rest = RestServer(models, metrics, HOST, a.rest_api_port) if a.rest_api_port else None
    models.start()
    server.start()
    if rest:
        rest.start()
    log.info("gRPC on %s:%d, REST on %s", HOST, a.port, f"{HOST}:{a.rest_api_port}" if rest else "no port")
    stop.wait()
    log.info("ending: requests under way are answered")
    server.stop(DRAIN_S).wait()
    if rest:
        rest.close()
    models.close()


if __name__ == "__main__":
    main()
