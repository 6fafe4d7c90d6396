"""The HTTP requests that arrive at one socket, with bounds on their size and their time."""

from __future__ import annotations

import re
import socket
import time
import zlib
from collections import deque
from typing import NamedTuple

import grpc
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from serving.server.runtime.servable import RequestError, invalid

RECEIVED_BYTES = 1 << 16
"""The most that is received at once."""
HEAD_BYTES = 1 << 16
"""The most that a request has before its body."""
CHUNKED = 8
"""A body in chunks takes at most this many times its size."""


class Limits(NamedTuple):
    """`connections` are open and `threads` of them compute at the same time. A request has at most `rows` rows and a
    body of `body_bytes`, also when that is unpacked. It arrives, and its answer leaves, within `time_s` each."""

    connections: int = 128
    threads: int = 8
    rows: int = 10_000
    body_bytes: int = 16 << 20
    time_s: float = 30.0


class Request(NamedTuple):
    """`path` is without its query. `keep`: the connection stays open."""

    method: str
    path: str
    body: bytes
    keep: bool


class Requests:
    """The requests of one socket. The methods on_... are what httptools' parser calls as it reads."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._connection, self._limits = connection, limits
        self._parser = HttpRequestParser(self)
        self._ready: deque[Request] = deque()
        self._error: RequestError | None = None
        self.on_message_begin()
        self._begun = False

    def next(self) -> Request | None:
        """The next request; None if the client is gone or silent. RequestError if it is wrong: no other one follows."""
        deadline, begun = time.monotonic() + self._limits.time_s, self._begun
        while not self._ready and self._error is None:
            if not (data := self._received(deadline)):
                return None
            self._feed(data)
            if self._begun and not begun:  # it was silent until now: the time of the request starts
                deadline, begun = time.monotonic() + self._limits.time_s, True
        if self._error is not None and not self._ready:
            raise self._error
        return self._ready.popleft()

    def _received(self, deadline: float) -> bytes:
        """What arrives next; nothing if the client is gone, or was silent until the deadline."""
        part = "header" if self._in_head else "body"
        try:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            data = self._connection.recv(RECEIVED_BYTES)
        except TimeoutError:
            if self._begun:
                text = f"the {part} did not arrive in time"
                raise RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
            return b""
        if self._begun and not data:
            raise invalid(f"the {part} ends too early")
        return data

    def _feed(self, data: bytes) -> None:
        self._arrived += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as e:
            if self._error is None:
                self._feed(self._without_offer() + data[e.args[0] :])
        except HttpParserError as e:
            self._refuse(invalid(f"the request is not HTTP/1.1: {e}"))
        if self._in_head and self._arrived > HEAD_BYTES:
            self._refuse(invalid(f"the header is too large, allowed are {HEAD_BYTES} bytes"))
        elif self._arrived > HEAD_BYTES + CHUNKED * self._limits.body_bytes:
            self._refuse(self._too_large())

    def _without_offer(self) -> bytes:
        """The head of a request that offers another protocol, without the offer: it is read again, by a new parser."""
        offer = (b"connection", b"upgrade", b"http2-settings")
        lines = [self._parser.get_method() + b" " + self._url + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self._headers.items() if name not in offer]
        self._parser = HttpRequestParser(self)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _refuse(self, error: RequestError) -> None:
        self._error = self._error or error

    def _too_large(self) -> RequestError:
        return invalid(
            f"the body is too large, allowed are {self._limits.body_bytes} bytes (--rest_api_max_body_bytes)"
        )

    def on_message_begin(self) -> None:
        self._begun = self._in_head = True
        self._arrived = self._size = 0
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []

    def on_url(self, part: bytes) -> None:
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it follows a body in chunks
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._parser.get_method() == b"CONNECT":
            return self._refuse(invalid("Malformed request: CONNECT"))
        if self._parser.should_upgrade():
            return
        transfer = self._headers.get(b"transfer-encoding", b"chunked").decode("latin-1").strip()
        if transfer.lower() != "chunked":
            self._refuse(invalid(f"Transfer-Encoding is {transfer!r:.50}, allowed is chunked"))
        elif int(self._headers.get(b"content-length", 0)) > self._limits.body_bytes:
            self._refuse(self._too_large())
        elif self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limits.body_bytes:
            self._refuse(self._too_large())
        elif self._error is None:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        self._begun, self._arrived = False, 0
        if self._error is not None or self._parser.should_upgrade():
            return
        path = re.split(rb"[?#]", self._url, maxsplit=1)[0].decode(errors="replace")
        try:
            body = self._unpacked(b"".join(self._parts))
        except RequestError as e:
            return self._refuse(e)
        self._ready.append(Request(self._parser.get_method().decode(), path, body, self._parser.should_keep_alive()))

    def _unpacked(self, data: bytes) -> bytes:
        packing = self._headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        if packing in ("", "identity"):
            return data
        if packing != "gzip":
            raise invalid(f"Content-Encoding is {packing!r:.50}, allowed is gzip")
        unpacking = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            plain = unpacking.decompress(data, self._limits.body_bytes + 1)
        except zlib.error as e:
            raise invalid(f"the body is not gzip: {e}") from None
        if len(plain) > self._limits.body_bytes:
            raise self._too_large()
        if not unpacking.eof or unpacking.unused_data:
            raise invalid("the body is not one whole gzip stream")
        return plain
