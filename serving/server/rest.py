"""TensorFlow Serving's REST API: predict, status and metadata of the models."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from common import process
from common.errors import InputError
from serving.server.connections import BoundedHandler, BoundedServer, Limits, read_body
from serving.server.json_tensor import inputs_of, reply_of
from serving.server.metrics import ServerMetrics
from serving.server.servable import RequestError, invalid, request_error
from serving.server.versions import Models

log = process.logger("serving.server.rest")

_NAME = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
PREDICT = re.compile(_NAME + r":(?P<method>predict|classify|regress)", re.IGNORECASE)
METADATA = re.compile(_NAME + "/metadata", re.IGNORECASE)
STATUS = re.compile(_NAME, re.IGNORECASE)

HTTP_CODES = {  # as TensorFlow Serving maps them, in util/net_http
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip


def spec_of(match: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        if len(match["version"]) > 19 or int(match["version"]) > 2**63 - 1:
            raise invalid(f"Failed to convert version: {match['version'][:30]} to numeric.")
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


class RestServer:
    """Serves the API on `port`, in its own threads."""

    def __init__(self, models: Models, metrics: ServerMetrics, host: str, port: int, limits: Limits) -> None:
        try:
            self._server = BoundedServer(host, port, _handler(models, metrics, limits), limits)
        except OSError as e:
            raise InputError(f"--rest_api_port {port}: cannot listen on {host}:{port}: {e.strerror}") from e
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="rest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(models: Models, metrics: ServerMetrics, limits: Limits) -> type[BoundedHandler]:
    class Handler(BoundedHandler):
        def do_GET(self) -> None:
            if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
                self.close_connection = True  # the body is not read
            path = self.path.split("?")[0]
            if path == "/monitoring/prometheus/metrics":
                return self.send(200, metrics.text().encode(), "text/plain; version=0.0.4")
            self._answer(lambda: self._get(path))

        def do_POST(self) -> None:
            try:
                body = read_body(self.headers, self.rfile, limits.body_bytes)
            except RequestError as e:
                self.close_connection = True
                self._error(e)
                return self.drain()
            self._answer(lambda: self._post(self.path.split("?")[0], body))

        def _get(self, path: str) -> dict[str, Any]:
            if match := METADATA.fullmatch(path):
                request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
                request.model_spec.CopyFrom(spec_of(match))
                return _as_dict(models.metadata(request))
            if match := STATUS.fullmatch(path):
                statuses = models.status(spec_of(match))
                return _as_dict(get_model_status_pb2.GetModelStatusResponse(model_version_status=statuses))
            if path.lower().rstrip("/") == "/v1/models":
                raise invalid("Missing model name in request.")
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Malformed request: GET {path}")

        def _post(self, path: str, body: bytes) -> dict[str, Any]:
            match = PREDICT.fullmatch(path)
            if match is None:
                raise RequestError(grpc.StatusCode.NOT_FOUND, f"Malformed request: POST {path}")
            if match["method"].lower() != "predict":
                raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"{match['method']} is not served here, predict is")
            spec = spec_of(match)
            with metrics.predict(models.label(spec.name), "REST"):
                return _predict(models, spec, body, limits.rows)

        def _answer(self, reply: Callable[[], dict[str, Any]]) -> None:
            try:
                with self.turn():
                    data = json.dumps(reply(), indent=4).encode()
            except Exception as e:
                return self._error(request_error(e))
            self.send(200, data, "application/json")

        def _error(self, error: RequestError) -> None:
            data = json.dumps({"error": error.text}).encode()
            self.send(HTTP_CODES.get(error.code.name, 500), data, "application/json")

    return Handler


def _predict(models: Models, spec: model_pb2.ModelSpec, body: bytes, most_rows: int) -> dict[str, Any]:
    try:
        request = _parsed(body)
        if not isinstance(request, dict):
            raise invalid("JSON Value is not an object")
        signature = request.get("signature_name", "serving_default")
        if not isinstance(signature, str):
            text = f"JSON Value: {signature!r:.100} not formatted correctly. 'signature_name' key must be a string."
            raise invalid(text)
        with models.use(spec) as servable:
            if signature not in servable.signatures:
                raise invalid(f'Serving signature name: "{signature}" not found in signature def')
            inputs, rows = inputs_of(request, servable.signature(signature).inputs, most_rows)
            return reply_of(servable.run(signature, inputs), rows)
    except RecursionError as e:
        raise invalid("JSON Parse error: the value is nested too deep") from e


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as e:
        raise invalid(f"JSON Parse error: {e}") from e


def _as_dict(message: Any) -> dict[str, Any]:
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return dict(MessageToDict(message, **options))
