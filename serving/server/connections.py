"""An HTTP server with bounds: on its threads, and on the size and the time of a request."""

from __future__ import annotations

import io
import re
import socket
import socketserver
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc

from common import process
from serving.server.servable import RequestError, invalid

log = process.logger("serving.server.connections")

LINE_BYTES, TRAILERS = 1024, 100
"""Of a chunked body: the longest line that is no content, and the lines behind it, which are read and not used."""
LINGER_S = 1.0
"""The time in which the rest of a refused body is read."""


class Limits(NamedTuple):
    """`connections` are open and `threads` of them compute at the same time. A request has at most `rows` rows and a
    body of `body_bytes`, also when that is unpacked. It arrives, and its answer leaves, within `time_s` each."""

    connections: int = 128
    threads: int = 8
    rows: int = 10_000
    body_bytes: int = 16 << 20
    time_s: float = 30.0


class TimedStream(io.RawIOBase):
    """What a socket receives until a deadline; TimeoutError after it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._deadline = connection, 0.0

    def within(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class BoundedServer(ThreadingHTTPServer):
    """A thread a connection. A connection beyond `limits.connections` is answered 503 and closed."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type[BoundedHandler], limits: Limits) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.limits = limits
        self.turns = threading.Semaphore(limits.threads)
        self._free = threading.Semaphore(limits.connections)
        super().__init__((host, port), handler)

    def server_bind(self) -> None:  # without HTTPServer's look-up of the host's name
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            text = b'{"error": "too many connections (--rest_api_max_connections)"}'
            head = f"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
            request.sendall(head.encode() + text)
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


class BoundedHandler(BaseHTTPRequestHandler):
    """The requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: BoundedServer
    rfile: io.BufferedReader

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._limits, self._stream = self.server.limits, TimedStream(self.connection)
        self.rfile = io.BufferedReader(self._stream)

    def handle_one_request(self) -> None:
        self._stream.within(self._limits.time_s)
        try:
            idle = not self.rfile.peek(1)
        except TimeoutError:
            idle = True
        if idle:
            self.close_connection = True
            return
        self._stream.within(self._limits.time_s)
        super().handle_one_request()  # closes the connection after a TimeoutError

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until fewer than `threads` requests compute."""
        if not self.server.turns.acquire(timeout=self._limits.time_s):
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "too many requests (--rest_api_num_threads)")
        try:
            yield
        finally:
            self.server.turns.release()

    def send(self, code: int, data: bytes, kind: str) -> None:
        self.connection.settimeout(self._limits.time_s)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def drain(self) -> None:
        """Reads the rest of a body that is refused, for a moment: if it is not read, the client may miss the answer."""
        self._stream.within(LINGER_S)
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.rfile.read(self._limits.body_bytes)

    def log_message(self, format: str, *args: Any) -> None:  # not one line for each request
        log.debug(format, *args)


def read_body(headers: Message, stream: io.BufferedReader, most: int) -> bytes:
    """Reads the body of a request, which may be chunked, and unpacks gzip. RequestError if it is wrong or too large."""
    lengths = set(headers.get_all("Content-Length", []))
    transfer, packing = (headers.get(name, "").strip().lower() for name in ("Transfer-Encoding", "Content-Encoding"))
    try:
        if transfer:
            if transfer != "chunked" or lengths:
                raise invalid(f"Transfer-Encoding is {transfer!r}, allowed is chunked, without a Content-Length")
            data = _chunked(stream, most)
        else:
            data = _exactly(stream, _length(lengths, most))
    except TimeoutError:
        raise RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "the body did not arrive in time") from None
    if packing in ("", "identity"):
        return data
    if packing != "gzip":
        raise invalid(f"Content-Encoding is {packing!r}, allowed is gzip")
    return _unpacked(data, most)


def _length(lengths: set[str], most: int) -> int:
    length = lengths.pop() if len(lengths) == 1 else ""
    if not re.fullmatch("[0-9]{1,18}", length):
        raise invalid(f"Content-Length is {length[:30] or 'missing'!r}, allowed is one number of bytes")
    if int(length) > most:
        raise _too_large(most)
    return int(length)


def _too_large(most: int) -> RequestError:
    return invalid(f"the body is too large, allowed are {most} bytes (--rest_api_max_body_bytes)")


def _exactly(stream: io.BufferedReader, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise invalid(f"the body ends after {len(data)} of {size} bytes")
    return data


def _chunked(stream: io.BufferedReader, most: int) -> bytes:
    parts, left = [], most
    while True:
        line = stream.readline(LINE_BYTES)
        match = re.fullmatch(rb"([0-9a-fA-F]{1,8})[ \t]*(;.*)?\r?\n", line)
        if match is None:
            raise invalid(f"a chunk begins with {line[:30]!r}, allowed is its size")
        if (size := int(match[1], 16)) == 0:
            break
        if size > left:
            raise _too_large(most)
        parts.append(_exactly(stream, size))
        left -= size
        if stream.readline(2) not in (b"\r\n", b"\n"):
            raise invalid("a chunk is longer than its size")
    for _ in range(TRAILERS):
        if stream.readline(LINE_BYTES) in (b"\r\n", b"\n", b""):
            return b"".join(parts)
    raise invalid(f"more than {TRAILERS} lines follow the chunks")


def _unpacked(data: bytes, most: int) -> bytes:
    unpacking = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = unpacking.decompress(data, most + 1)
    except zlib.error as e:
        raise invalid(f"the body is not gzip: {e}") from None
    if len(plain) > most:
        raise _too_large(most)
    if not unpacking.eof or unpacking.unused_data:
        raise invalid("the body is not one whole gzip stream")
    return plain
