"""TensorFlow Serving's REST API: predict, status and metadata of the models."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from common import process
from common.errors import InputError
from serving.server.metrics import ServerMetrics
from serving.server.servable import MAX_BYTES, RequestError, invalid, request_error
from serving.server.versions import Models

log = process.logger("serving.server.rest")

_NAME = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
PREDICT = re.compile(_NAME + r":(?P<method>predict|classify|regress)", re.IGNORECASE)
METADATA = re.compile(_NAME + "/metadata", re.IGNORECASE)
STATUS = re.compile(_NAME, re.IGNORECASE)

HTTP_CODES = {  # as TensorFlow Serving maps them, in util/net_http
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip


def to_array(name: str, value: Any, info: Any) -> npt.NDArray[Any]:
    """Converts a JSON value to the array that `info` (TensorInfo) describes; RequestError names the input `name`."""
    dtype = tf.as_dtype(info.dtype)
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    cells = [_cell(name, cell, dtype) for cell in _cells(name, value, shape)]
    if 0 in shape:  # JSON does not show the dimensions after an empty one
        shape += [max(dim.size, 0) for dim in info.tensor_shape.dim[len(shape) :]]
    return np.array(cells, object if dtype == tf.string else dtype.as_numpy_dtype).reshape(shape)


def _cells(name: str, value: Any, shape: list[int], level: int = 0) -> Iterator[Any]:
    """The values in nested lists; RequestError if the lists do not all have this shape."""
    if level == len(shape):
        if isinstance(value, list):
            raise invalid(f"{name}: Encountered list at unexpected level: {level} expected < {len(shape)}")
        yield value
    elif not isinstance(value, list):
        raise invalid(
            f"{name}: JSON Value: {json.dumps(value)[:100]} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {len(shape)}"
        )
    elif len(value) != shape[level]:
        raise invalid(
            f"{name}: Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    else:
        for inner in value:
            yield from _cells(name, inner, shape, level + 1)


def _cell(name: str, value: Any, dtype: tf.DType) -> Any:
    """One JSON value as one of an array of `dtype`; RequestError if it is of another type."""
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


def inputs_of(body: Mapping[str, Any], signature: Mapping[str, Any]) -> tuple[dict[str, npt.NDArray[Any]], bool]:
    """The arrays of a predict body for the inputs of `signature`. True: it has rows, `instances`; else `inputs`."""
    rows, columns = "instances" in body, "inputs" in body
    if rows and columns:
        raise invalid("Not formatted correctly expected only one of 'instances' or 'inputs' key")
    if not rows and not columns:
        raise invalid("Missing 'inputs' or 'instances' key")
    if columns:
        values = body["inputs"]
        if not isinstance(values, dict) or (len(signature) == 1 and "b64" in values):
            if len(signature) != 1:
                raise invalid("'inputs' must be an object that names the inputs: the signature does not have only one")
            values = {next(iter(signature)): values}
    else:
        values = _columns(body["instances"], signature)
    for name in values:
        if name not in signature:
            raise invalid(f"JSON object: does not have named input: {name}. Known: {', '.join(sorted(signature))}")
    return {name: to_array(name, value, signature[name]) for name, value in values.items()}, rows


def _columns(instances: Any, signature: Mapping[str, Any]) -> dict[str, list[Any]]:
    if not isinstance(instances, list) or not instances:
        raise invalid("'instances' must be a list with at least one row")
    named = all(isinstance(row, dict) and set(row) != {"b64"} for row in instances)
    if not named:
        if len(signature) != 1:
            raise invalid(f"'instances' must be objects that name the inputs: {', '.join(sorted(signature))}")
        return {next(iter(signature)): instances}
    for i, row in enumerate(instances):
        if set(row) != set(instances[0]):
            raise invalid(
                f"Failed to process element: {i} of 'instances' list: its inputs differ from those of the first"
            )
    return {name: [row[name] for row in instances] for name in instances[0]}


def plain(name: str, value: npt.NDArray[Any]) -> Any:
    """An output as JSON: each float with the fewest digits that give the same float, bytes of `*_bytes` as base64."""
    if value.ndim:
        return [plain(name, inner) for inner in value]
    item = value.item() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(item, bytes):
        if name.endswith("_bytes"):
            return {"b64": base64.b64encode(item).decode()}
        return item.decode(errors="replace")
    return float(str(value)) if isinstance(item, float) else item


def reply_of(outputs: Mapping[str, npt.NDArray[Any]], rows: bool) -> dict[str, Any]:
    """The JSON answer: `predictions` by rows, or `outputs` by columns."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    if rows:
        sizes = {array.shape[0] if array.ndim else None for array in arrays.values()}
        if len(sizes) != 1 or None in sizes:
            raise invalid("the outputs are no rows of one batch: ask for them by 'inputs'")
    values = {name: plain(name, array) for name, array in arrays.items()}
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
    """Serves the API on `port`, in its own threads."""

    def __init__(self, models: Models, metrics: ServerMetrics, host: str, port: int) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(models, metrics))
        except OSError as e:
            raise InputError(f"--rest_api_port {port}: cannot listen on {host}:{port}: {e.strerror}") from e
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
                return _predict(models, spec, body)

        def _answer(self, reply: Any) -> None:
            try:
                data = json.dumps(reply(), indent=4).encode()
            except Exception as e:
                return self._error(request_error(e))
            self._send(200, data, "application/json")

        def _error(self, error: RequestError) -> None:
            data = json.dumps({"error": error.text}).encode()
            self._send(HTTP_CODES.get(error.code.name, 500), data, "application/json")

        def _send(self, code: int, data: bytes, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # not one line for each request
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
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return dict(MessageToDict(message, **options))
