"""TensorFlow Serving's REST API: predict, status and metadata of the models that are served over gRPC, too."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from serving.server.metrics import ServerMetrics
from serving.server.servable import MAX_BYTES, Refused, invalid, refusal
from serving.server.versions import Models

log = logging.getLogger("serving.server.rest")

_NAME = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
PREDICT = re.compile(_NAME + r":(?P<method>predict|classify|regress)", re.IGNORECASE)
METADATA = re.compile(_NAME + "/metadata", re.IGNORECASE)
STATUS = re.compile(_NAME, re.IGNORECASE)

HTTP_CODES = {  # util/net_http: what TensorFlow Serving makes of a status
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip


def to_array(name: str, value: Any, info: Any) -> npt.NDArray[Any]:
    """A JSON value as the array that `info` (TensorInfo) asks for; Refused, with the name, if it is not one."""
    dtype = tf.as_dtype(info.dtype)
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    flat: list[Any] = []
    _flatten(name, value, shape, 0, flat)
    cells = [_cell(name, cell, dtype) for cell in flat]
    if not shape or 0 not in shape:
        return np.array(cells, object if dtype == tf.string else dtype.as_numpy_dtype).reshape(shape)
    known = info.tensor_shape.dim  # [] says nothing of the dimensions behind an empty one
    shape += [max(d.size, 0) for d in known[len(shape) :]]
    return np.empty(shape, object if dtype == tf.string else dtype.as_numpy_dtype)


def _flatten(name: str, value: Any, shape: list[int], level: int, into: list[Any]) -> None:
    if level == len(shape):
        if isinstance(value, list):
            raise invalid(f"{name}: Encountered list at unexpected level: {level} expected < {len(shape)}")
        if shape and 0 in shape:
            return
        into.append(value)
        return
    if not isinstance(value, list):
        raise invalid(
            f"{name}: JSON Value: {json.dumps(value)[:100]} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {len(shape)}"
        )
    if len(value) != shape[level]:
        raise invalid(
            f"{name}: Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for inner in value:
        _flatten(name, inner, shape, level + 1, into)


def _cell(name: str, value: Any, dtype: tf.DType) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == tf.string and isinstance(value, str):
        return value.encode()
    if dtype == tf.string and isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError:
            raise invalid(f"{name}: Unable to base64 decode") from None
    if dtype.is_integer and number and isinstance(value, int) and dtype.min <= value <= dtype.max:
        return value
    if dtype.is_floating and number:
        return value
    if dtype.is_bool and isinstance(value, bool):
        return value
    raise invalid(f"{name}: JSON Value: {json.dumps(value)[:100]} is not of expected type: {dtype.name}")


def inputs_of(body: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[dict[str, npt.NDArray[Any]], bool]:
    """The arrays of a predict body, and whether it goes by rows (`instances`) or by columns (`inputs`)."""
    rows, columns = "instances" in body, "inputs" in body
    if rows and columns:
        raise invalid("Not formatted correctly expected only one of 'instances' or 'inputs' key")
    if not rows and not columns:
        raise invalid("Missing 'inputs' or 'instances' key")
    if columns:
        given = body["inputs"]
        if not isinstance(given, dict) or (len(known) == 1 and "b64" in given):
            if len(known) != 1:
                raise invalid("'inputs' is a plain value, but the signature has not one input: name them in an object")
            given = {next(iter(known)): given}
    else:
        given = _columns(body["instances"], known)
    for name in given:
        if name not in known:
            raise invalid(f"JSON object: does not have named input: {name}. Known: {', '.join(sorted(known))}")
    return {name: to_array(name, value, known[name]) for name, value in given.items()}, rows


def _columns(instances: Any, known: Mapping[str, Any]) -> dict[str, list[Any]]:
    if not isinstance(instances, list) or not instances:
        raise invalid("'instances' must be a list with at least one row")
    named = all(isinstance(row, dict) and set(row) != {"b64"} for row in instances)
    if not named:
        if len(known) != 1:
            raise invalid(f"'instances' must be objects that name the inputs: {', '.join(sorted(known))}")
        return {next(iter(known)): instances}
    for i, row in enumerate(instances):
        if set(row) != set(instances[0]):
            raise invalid(f"Failed to process element: {i} of 'instances' list: other inputs than the first one's")
    return {name: [row[name] for row in instances] for name in instances[0]}


def plain(name: str, value: npt.NDArray[Any]) -> Any:
    """An output as JSON: floats as short as they read back, bytes of `*_bytes` as base64."""
    if value.ndim:
        return [plain(name, inner) for inner in value]
    item = value.item() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(item, bytes):
        if name.endswith("_bytes"):
            return {"b64": base64.b64encode(item).decode()}
        return item.decode(errors="replace")
    return float(str(value)) if isinstance(item, float) else item


def reply_of(outputs: Mapping[str, npt.NDArray[Any]], rows: bool) -> dict[str, Any]:
    found = {name: np.asarray(value) for name, value in outputs.items()}
    if rows:
        sizes = {value.shape[0] if value.ndim else None for value in found.values()}
        if len(sizes) != 1 or None in sizes:
            raise invalid("the outputs are no rows of one batch: ask for them by 'inputs'")
    values = {name: plain(name, np.asarray(value)) for name, value in found.items()}
    if not rows:
        return {"outputs": next(iter(values.values())) if len(values) == 1 else values}
    if len(values) == 1:
        return {"predictions": next(iter(values.values()))}
    return {"predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}


def spec_of(match: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        if int(match["version"]) > 2**63 - 1:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


class RestServer:
    """The API on `port`, in threads of its own."""

    def __init__(self, models: Models, metrics: ServerMetrics, host: str, port: int) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(models, metrics))
        except OSError as e:
            raise SystemExit(
                f"serving.server.model_server: --rest_api_port {port}: cannot listen on {host}:{port}: {e.strerror}"
            ) from e
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="rest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(models: Models, metrics: ServerMetrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60  # of an idle connection
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path == "/monitoring/prometheus/metrics":
                return self._send(200, metrics.text().encode(), "text/plain; version=0.0.4")
            self._answer(lambda: self._get(path))

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > MAX_BYTES:
                self.close_connection = True  # the body is not read
                return self._error(invalid(f"Content-Length is {size or 'missing'}, allowed are {MAX_BYTES} bytes"))
            body = self.rfile.read(int(size))
            self._answer(lambda: self._post(self.path.split("?")[0], body))

        def _get(self, path: str) -> dict[str, Any]:
            if match := METADATA.fullmatch(path):
                request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
                request.model_spec.CopyFrom(spec_of(match))
                return _as_dict(models.metadata(request))
            if match := STATUS.fullmatch(path):
                found = models.status(spec_of(match))
                return _as_dict(get_model_status_pb2.GetModelStatusResponse(model_version_status=found))
            if path.lower().rstrip("/") == "/v1/models":
                raise invalid("Missing model name in request.")
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Malformed request: GET {path}")

        def _post(self, path: str, body: bytes) -> dict[str, Any]:
            match = PREDICT.fullmatch(path)
            if match is None:
                raise Refused(grpc.StatusCode.NOT_FOUND, f"Malformed request: POST {path}")
            if match["method"].lower() != "predict":
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, f"{match['method']} is not served here, predict is")
            began, status, spec = time.perf_counter(), "OK", spec_of(match)
            try:
                return _predict(models, spec, body)
            except Exception as e:
                status = refusal(e).code.name
                raise
            finally:
                known = spec.name in models.names()
                metrics.add(spec.name if known else "", "REST", status, (time.perf_counter() - began) * 1e6)

        def _answer(self, reply: Any) -> None:
            try:
                data = json.dumps(reply(), indent=4).encode()
            except Exception as e:
                return self._error(refusal(e))
            self._send(200, data, "application/json")

        def _error(self, refused: Refused) -> None:
            data = json.dumps({"error": refused.text}).encode()
            self._send(HTTP_CODES.get(refused.code.name, 500), data, "application/json")

        def _send(self, code: int, data: bytes, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # a line a request is too much
            log.debug(format, *args)

    return Handler


def _predict(models: Models, spec: model_pb2.ModelSpec, body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise invalid(f"JSON Parse error: {e}") from e
    if not isinstance(request, dict):
        raise invalid("JSON Value is not an object")
    signature = request.get("signature_name", "serving_default")
    if not isinstance(signature, str):
        raise invalid(f"JSON Value: {signature!r} not formatted correctly. 'signature_name' key must be a string.")
    with models.use(spec) as servable:
        if signature not in servable.signatures:
            raise invalid(f'Serving signature name: "{signature}" not found in signature def')
        inputs, rows = inputs_of(request, servable.signature(signature).inputs)
        return reply_of(servable.run(signature, inputs), rows)


def _as_dict(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found
