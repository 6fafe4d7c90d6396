"""TensorFlow Serving's REST API: predict, classify and regress, and status and metadata of the models."""

from __future__ import annotations

import re
import threading
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from common.errors import InputError
from serving.server.metrics import ServerMetrics
from serving.server.rest.connections import Answer, BoundedServer, refused
from serving.server.rest.http_requests import Limits, Request
from serving.server.rest.json_examples import classify_json, regress_json
from serving.server.rest.json_tensor import inputs_of, reply_of
from serving.server.rest.json_text import parsed, shown, written
from serving.server.runtime.servable import RequestError, invalid, request_error
from serving.server.versions import Models

_SPEC = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
ASK = re.compile(rf"(?i:/v1/models/(?P<name>[^/:]+){_SPEC}):(?P<method>predict|classify|regress)")
LOOK = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_SPEC}(?P<metadata>/metadata)?", re.IGNORECASE)
METRICS = "/monitoring/prometheus/metrics"


class RestServer:
    """Serves the API on `port`, in its own threads."""

    def __init__(self, models: Models, metrics: ServerMetrics, host: str, port: int, limits: Limits) -> None:
        self._models, self._metrics, self._limits = models, metrics, limits
        try:
            self._server = BoundedServer(host, port, self._answer, limits)
        except OSError as e:
            raise InputError(f"--rest_api_port {port}: cannot listen on {host}:{port}: {e.strerror}") from e
        self.port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever, name="rest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.close()

    def _answer(self, request: Request) -> Answer:
        if (request.method, request.path) == ("GET", METRICS):
            return Answer(200, self._metrics.text().encode(), "text/plain; version=0.0.4")
        try:
            with self._server.turn():
                return Answer(200, self._reply(request))
        except RecursionError:
            return refused(invalid("JSON Parse error: the value is nested too deep"))
        except Exception as e:
            return refused(request_error(e))

    def _reply(self, request: Request) -> bytes:
        method, path = request.method, request.path
        if not path.lower().startswith("/v1/"):
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"no page {path:.200}, the API is at /v1/models")
        if method == "POST" and (match := ASK.fullmatch(path)):
            return self._inference(match["method"], spec_of(match), request.body)
        if method == "GET" and (match := LOOK.fullmatch(path)):
            return (
                _metadata(self._models, spec_of(match)) if match["metadata"] else _status(self._models, spec_of(match))
            )
        raise invalid(f"Malformed request: {method} {path:.200}")

    def _inference(self, method: str, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        with self._metrics.predict(self._models.label(spec.name), "REST", method.capitalize()):
            request = parsed(body)
            signature = signature_of(request)
            if method == "predict":
                return self._predict(spec, signature, request)
            answer = classify_json if method == "classify" else regress_json
            return answer(self._models, spec, signature, request, self._limits.rows)

    def _predict(self, spec: model_pb2.ModelSpec, name: str, request: dict[str, Any]) -> bytes:
        with self._models.use(spec) as servable:
            signature = servable.signatures.get(name)
            if signature is None:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            if not signature.inputs:
                raise invalid(f"Failed to get input map for signature: {name}")
            inputs, rows = inputs_of(request, signature.inputs, self._limits.rows)
            return reply_of(servable.run(name, inputs), rows)


def spec_of(match: re.Match[str]) -> model_pb2.ModelSpec:
    if not match["name"]:
        raise invalid("Missing model name in request.")
    spec = model_pb2.ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        if len(match["version"]) > 19 or int(match["version"]) > 2**63 - 1:
            raise invalid(f"Failed to convert version: {match['version'][:30]} to numeric.")
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


def signature_of(body: dict[str, Any]) -> str:
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        text = "not formatted correctly. 'signature_name' key must be a string value."
        raise invalid(f"JSON Value: {shown(body)} {text}")
    return name or "serving_default"


def _status(models: Models, spec: model_pb2.ModelSpec) -> bytes:
    return written(_as_dict(get_model_status_pb2.GetModelStatusResponse(model_version_status=models.status(spec))))


def _metadata(models: Models, spec: model_pb2.ModelSpec) -> bytes:
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
    reply, signatures = models.metadata(request), get_model_metadata_pb2.SignatureDefMap()
    reply.metadata["signature_def"].Unpack(signatures)
    metadata = {"signature_def": _as_dict(signatures)}
    return written({"model_spec": _as_dict(reply.model_spec), "metadata": metadata})


def _as_dict(message: Any) -> dict[str, Any]:
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return dict(MessageToDict(message, **options))
