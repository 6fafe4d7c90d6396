"""An HTTP server with bounds: a thread a connection, and few requests that compute at the same time."""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import grpc

from common import process
from serving.server.rest.http_requests import RECEIVED_BYTES, Limits, Request, Requests
from serving.server.runtime.servable import RequestError

log = process.logger("serving.server.rest.connections")

LINGER_S = 1.0
"""The time in which the rest of a refused body is read."""
DRAIN_S = 10.0
"""The time that requests have when the server closes."""

HTTP_CODES = {  # as TensorFlow Serving maps them, in http_server.cc
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}


class Answer(NamedTuple):
    code: int
    data: bytes
    kind: str = "application/json"

    def message(self, *, keep: bool, body: bool = True) -> bytes:
        """The answer as HTTP. `keep`: the connection stays open."""
        head = (
            f"HTTP/1.1 {self.code} {_PHRASES[self.code]}\r\nDate: {_date(int(time.time()))}\r\n"
            f"Content-Type: {self.kind}\r\nContent-Length: {len(self.data)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        return head.encode() + self.data if body else head.encode()


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def refused(error: RequestError) -> Answer:
    return Answer(HTTP_CODES.get(error.code.name, 500), json.dumps({"error": error.text}).encode())


class BoundedServer(socketserver.ThreadingTCPServer):
    """Answers requests by `answer`. A connection beyond `limits.connections` is answered 503 and closed."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, answer: Callable[[Request], Answer], limits: Limits) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.limits, self.answer = limits, answer
        self._turns: SimpleQueue[None] = SimpleQueue()  # Python's Semaphore takes ten times as long
        for _ in range(limits.threads):
            self._turns.put(None)
        self._free = threading.Semaphore(limits.connections)
        self._begun: set[object] = set()
        self._idle, self.closing = threading.Condition(), False
        super().__init__((host, port), Connection)
        self.port = self.server_address[1]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until fewer than `threads` requests compute."""
        try:
            self._turns.get(timeout=self.limits.time_s)
        except Empty:
            text = "too many requests (--rest_api_num_threads)"
            raise RequestError(grpc.StatusCode.UNAVAILABLE, text) from None
        try:
            yield
        finally:
            self._turns.put(None)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """A request that is answered before the server closes."""
        one = object()
        self._begun.add(one)
        try:
            yield
        finally:
            self._begun.discard(one)
            if self.closing:
                with self._idle:
                    self._idle.notify_all()

    def close(self) -> None:
        """Takes no new connection, and waits a while for the requests that have begun."""
        self.closing = True
        self.shutdown()
        self.server_close()
        with self._idle:
            self._idle.wait_for(lambda: not self._begun, DRAIN_S)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            text = "too many connections (--rest_api_max_connections)"
            request.sendall(refused(RequestError(grpc.StatusCode.UNAVAILABLE, text)).message(keep=False))
            return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # else a client went away
            log.error("a request of %s: %r", client_address, error)


class Connection(socketserver.BaseRequestHandler):
    """One connection: its requests, and their answers."""

    server: BoundedServer
    request: socket.socket

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        requests, keep = Requests(self.request, self.server.limits), True
        while keep:
            try:
                request = requests.next()
            except RequestError as e:
                self._send(refused(e).message(keep=False))
                return self._drain()
            if request is None:
                return
            with self.server.begun():
                answer = self.server.answer(request)
                keep = request.keep and not self.server.closing
                self._send(answer.message(keep=keep, body=request.method != "HEAD"))

    def _send(self, message: bytes) -> None:
        self.request.settimeout(self.server.limits.time_s)
        self.request.sendall(message)

    def _drain(self) -> None:
        """Reads the rest of a body that is refused, for a moment: if it is not read, the client may miss the answer."""
        deadline = time.monotonic() + LINGER_S
        with suppress(OSError):
            self.request.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.request.settimeout(left)
                if not self.request.recv(RECEIVED_BYTES):
                    return
