"""REST's bodies and bounds, in one process: each request that is wrong or too much is refused in one line."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo

from serving.server.metrics import ServerMetrics
from serving.server.model_server import grpc_server
from serving.server.rest.api import RestServer
from serving.server.rest.http_requests import Limits
from serving.server.runtime.servable import Signature
from tests.support.ports import free_port
from tests.support.wait import until

LIMITS = Limits(connections=12, threads=2, rows=100, body_bytes=20_000, time_s=1.0)


class Models:
    """One model, whose answer is its input `user`."""

    computing, most = 0, 0

    def __init__(self) -> None:
        dtypes = {"user": tf.int64, "price": tf.float32, "city": tf.string}
        inputs = {name: TensorInfo(dtype=dtype.as_datatype_enum) for name, dtype in dtypes.items()}
        self.signatures = {"serving_default": Signature(inputs, {}), "none": Signature({}, {})}
        self.pause = threading.Event()
        self.pause.set()
        self._lock = threading.Lock()

    def label(self, name: str) -> str:
        return name

    @contextmanager
    def use(self, spec: Any) -> Iterator[Models]:
        yield self

    def signature(self, name: str) -> Signature:
        return self.signatures[name]

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            self.computing += 1
            self.most = max(self.most, self.computing)
        self.pause.wait(10)
        with self._lock:
            self.computing -= 1
        return {"user": inputs["user"]}


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture(scope="module")
def port(models: Models) -> Iterator[int]:
    server = RestServer(models, ServerMetrics(), "127.0.0.1", 0, LIMITS)  # type: ignore[arg-type]
    server.start()
    yield server.port
    server.close()


PATH = "/v1/models/ranker:predict"
ROW = {"user": 7, "price": 0.5, "city": "Bonn"}
GOOD = json.dumps({"instances": [ROW, ROW]}).encode()


def post(port: int, body: Any, path: str = PATH, **headers: str) -> tuple[int, dict[str, Any]]:
    """Sends a body; an iterable of parts is sent in chunks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with closing(connection):
        connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())


def test_bodies_in_chunks_and_packed(port: int) -> None:
    expected = (200, {"predictions": [7, 7]})
    packed = gzip.compress(GOOD)
    assert post(port, GOOD) == expected
    assert post(port, iter([GOOD[:5], GOOD[5:6], GOOD[6:]])) == expected
    assert post(port, packed, Content_Encoding="gzip") == expected
    assert post(port, iter([packed[:9], packed[9:]]), Content_Encoding="gzip") == expected


def test_a_connection_serves_on_after_chunks_with_extensions_and_trailers(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as s:
        size = f"{len(GOOD):X};name=value\r\n".encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        s.sendall(2 * (head + size + GOOD + b"\r\n0\r\nDigest: none\r\n\r\n"))
        until(lambda: (text := s.recv(9999, socket.MSG_PEEK)).count(b"200 OK") == 2 and text, "two answers", 20)


def test_a_wrong_body_is_refused_and_the_connection_closed(port: int) -> None:
    for body, headers in ((GOOD, {"Content_Encoding": "gzip"}), (bytes(20_001), {}), (iter([bytes(15_000)] * 2), {})):
        code, reply = post(port, body, **headers)
        assert code == 400 and "\n" not in reply["error"]


OBJECTS = b'{"a":' * 900 + b"1" + b"}" * 900
WRONG_VALUES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"instances = [1]", "JSON Parse error: Invalid value. at offset: 0"),
    "lists 19,000 deep": (b"[" * 19_000, "JSON Parse error: the value is nested too deep"),
    "objects 900 deep": (b'{"instances": [{"user": ' + OBJECTS + b', "city": "x", "price": 1}]}', "Type: Object"),
    "a name 900 deep": (b'{"signature_name": ' + OBJECTS + b"}", "must be a string value."),
    "a name that is a number": (b'{"signature_name": 100}', "'signature_name' key must be a string value."),
    "no inputs": (b'{"signature_name": "none", "inputs": {}}', "Failed to get input map for signature: none"),
    "another name": (b'{"signature_name": "no", "instances": [1]}', '"no" not found in signature def'),
    "half a surrogate as a name": (b'{"instances": [{"\\ud800": 1}]}', "named input"),
    "half a surrogate as a signature": (b'{"signature_name": "\\ud800", "instances": [1]}', "not found"),
    "too many rows": (json.dumps({"instances": [{**ROW, "city": ""}] * 101}).encode(), "101 rows, allowed are 100"),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_a_wrong_value_is_refused(port: int, name: str) -> None:
    body, text = WRONG_VALUES[name]
    code, reply = post(port, body)
    assert code == 400 and text in reply["error"] and "\n" not in reply["error"], reply


MALFORMED, VERSION = "Malformed request: {method} {path}", "Failed to convert version: 18446744073709551615 to numeric."
PATHS: dict[str, tuple[int, str]] = {  # as upstream's http_rest_api_handler_test.cc has them, and evhttp_server.cc
    "GET /v1/foo": (400, MALFORMED),
    "POST /v1/foo": (400, MALFORMED),
    "GET /v1/models": (400, "Missing model name in request."),
    "GET /v1/models/": (400, MALFORMED),
    "GET /v1/models/debug/ranker": (400, MALFORMED),
    "POST /v1/models": (400, MALFORMED),
    "GET /v1/models/foo:predict": (400, MALFORMED),
    "GET /v1/models/foo/version/50:predict": (400, MALFORMED),
    "POST /v1/models/foo/version/50:regress": (400, MALFORMED),
    "POST /v1/models/foo/versions/HELLO:regress": (400, MALFORMED),
    "POST /v1/models/foo/versions/18446744073709551615:regress": (400, VERSION),
    "GET /v1/models/foo/versions/18446744073709551615": (400, VERSION),
    "POST /v1/models/foo/metadata": (400, MALFORMED),
    "POST /v1/models/foo/label/some_label:regress": (400, MALFORMED),
    "POST /v1/models/foo/versions/50/labels/some_label:regress": (400, MALFORMED),
    "POST /v1/models/ranker:Predict": (400, MALFORMED),
    "POST /v1/models/ranker:train": (400, MALFORMED),
    "PUT /v1/models/ranker:predict": (400, MALFORMED),
    "DELETE /v1/models/ranker": (400, MALFORMED),
    "OPTIONS /v1/models/ranker": (400, MALFORMED),
    "PATCH /v1/models/ranker": (400, MALFORMED),
    "HEAD /v1/models/ranker": (400, ""),
    "GET /nothing": (404, "/nothing"),
    "POST /": (404, "/"),
}


@pytest.mark.parametrize("request_line", PATHS)
def test_a_malformed_path_is_refused(port: int, request_line: str) -> None:
    method, path = request_line.split()
    code, text = PATHS[request_line]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with closing(connection):
        connection.request(method, path)
        reply = connection.getresponse()
        data = reply.read()
        assert reply.status == code and reply.headers["Content-Type"] == "application/json"
        assert text.format(method=method, path=path) in (json.loads(data)["error"] if data else "")


def test_one_connection_serves_many_requests(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with closing(connection):
        for path, code in (
            (PATH, 200),
            (PATH.upper().replace("PREDICT", "predict"), 200),
            ("/v1/foo", 400),
            (PATH, 200),
        ):
            connection.request("POST", path, GOOD)
            reply = connection.getresponse()
            assert reply.status == code and reply.headers["Connection"] == "keep-alive"
            reply.read()


def test_a_request_that_has_begun_is_answered_when_the_server_closes() -> None:
    models = Models()
    models.pause.clear()
    server = RestServer(models, ServerMetrics(), "127.0.0.1", 0, LIMITS)  # type: ignore[arg-type]
    server.start()
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(post(server.port, GOOD)))
    asking.start()
    until(lambda: models.computing == 1, "the request computes", 10)
    closing_server = threading.Thread(target=server.close)
    closing_server.start()
    until(lambda: _refuses(server.port), "no new connection", 10)
    models.pause.set()
    asking.join()
    closing_server.join()
    assert answers == [(200, {"predictions": [7, 7]})]


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_version_of_5000_digits_is_refused(port: int) -> None:
    code, reply = post(port, GOOD, f"/v1/models/ranker/versions/{'7' * 5000}:predict")
    assert code == 400 and "Failed to convert version: 777" in reply["error"] and len(reply["error"]) < 100


def test_not_a_number_and_infinity_are_numbers(port: int) -> None:
    assert post(port, b'{"instances": [{"user": 1, "city": "x", "price": NaN}]}')[0] == 200
    assert post(port, b'{"instances": [{"user": 1, "city": "x", "price": -Infinity}]}')[0] == 200


def rest_threads() -> int:
    return sum("process_request" in t.name for t in threading.enumerate())


def test_half_sent_requests_take_a_bounded_number_of_threads_for_a_bounded_time(port: int) -> None:
    began, half = time.monotonic(), f"POST {PATH} HTTP/1.1\r\nContent-Length: 100\r\n\r\n{{".encode()
    open_ones = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(40)]
    for n, s in enumerate(open_ones):
        s.sendall(half[: 1 + n % len(half)])
    assert b"503" in b"".join(s.recv(99) for s in open_ones[-5:])
    assert rest_threads() <= LIMITS.connections
    until(lambda: post(port, GOOD)[0] == 200, "an answer, once the time of the half-sent ones is over", 20)
    assert time.monotonic() - began < 10
    for s in open_ones:
        s.close()


def test_a_body_that_drips_is_cut_off(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as s:
        s.sendall(f"POST {PATH} HTTP/1.1\r\nContent-Length: 1000\r\n\r\n".encode())
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(0.1):
                with suppress(OSError):
                    s.sendall(b" ")

        dripping = threading.Thread(target=drip)
        dripping.start()
        reply = http.client.HTTPResponse(s)
        reply.begin()
        ended.set()
        dripping.join()
        assert reply.status == 504 and b"did not arrive in time" in reply.read()


def test_a_server_listens_on_its_host_alone() -> None:
    models, metrics, port = Models(), ServerMetrics(), free_port()
    over_grpc = grpc_server(models, metrics, "127.0.0.2", port, 1)  # type: ignore[arg-type]
    over_grpc.start()
    over_rest = RestServer(models, metrics, "127.0.0.2", 0, LIMITS)  # type: ignore[arg-type]
    over_rest.start()
    for used in (port, over_rest.port):
        socket.create_connection(("127.0.0.2", used), 10).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", used), 10)
    over_rest.close()
    over_grpc.stop(0).wait()


def test_few_requests_compute_at_the_same_time(port: int, models: Models) -> None:
    models.most, codes = 0, []
    models.pause.clear()
    threads = [threading.Thread(target=lambda: codes.append(post(port, GOOD)[0])) for _ in range(6)]
    for t in threads:
        t.start()
    until(lambda: models.computing == LIMITS.threads, "all turns taken", 10)
    models.pause.set()
    for t in threads:
        t.join()
    assert codes == [200] * 6 and models.most == LIMITS.threads
