"""The requests of a socket: what HTTP allows in them, and their bounds."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from serving.server.rest.http_requests import HEAD_BYTES, Limits, Request, Requests
from serving.server.runtime.servable import RequestError

LIMITS = Limits(body_bytes=20_000, time_s=0.2)
POST = b"POST /a?b HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /c HTTP/1.1\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class Sockets(NamedTuple):
    client: socket.socket
    requests: Requests


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    client, server = socket.socketpair()
    with client, server:
        yield Sockets(client, Requests(server, LIMITS))


def head(size: int, *more: str) -> bytes:
    return POST + "".join(f"{line}\r\n" for line in (f"Content-Length: {size}", *more)).encode() + b"\r\n"


PACKED = gzip.compress(b"hello")
RIGHT: dict[str, tuple[bytes, list[Request]]] = {
    "one": (head(5) + b"hello", [Request("POST", "/a", b"hello", True)]),
    "no body": (POST + b"\r\n", [Request("POST", "/a", b"", True)]),
    "two at once": (head(2) + b"hi" + GET, [Request("POST", "/a", b"hi", True), Request("GET", "/c", b"", True)]),
    "the last one": (head(2, "Connection: close") + b"hi", [Request("POST", "/a", b"hi", False)]),
    "HTTP/1.0": (b"HEAD /c HTTP/1.0\r\n\r\n", [Request("HEAD", "/c", b"", False)]),
    "chunks": (CHUNKED + b"3;n=v\r\nhel\r\n2\r\nlo\r\n0\r\nDigest: x\r\n\r\n", [Request("POST", "/a", b"hello", True)]),
    "gzip": (head(len(PACKED), "Content-Encoding: gzip") + PACKED, [Request("POST", "/a", b"hello", True)]),
    "an offer of HTTP/2": (
        head(2, "Connection: Upgrade", "Upgrade: h2c")
        + b"hi"
        + GET[:-2]
        + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        [Request("POST", "/a", b"hi", True), Request("GET", "/c", b"", True)],
    ),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("pieces", [1, 7])
def test_requests(sockets: Sockets, name: str, pieces: int) -> None:
    data, expected = RIGHT[name]
    for i in range(pieces):
        sockets.client.sendall(data[len(data) * i // pieces : len(data) * (i + 1) // pieces])
    assert [sockets.requests.next() for _ in expected] == expected
    sockets.client.close()
    assert sockets.requests.next() is None


def test_a_client_that_asks_first_is_told_to_continue(sockets: Sockets) -> None:
    sockets.client.sendall(head(2, "Expect: 100-continue"))
    with pytest.raises(RequestError, match="the body did not arrive in time"):
        sockets.requests.next()
    assert sockets.client.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_silent_client_is_no_error(sockets: Sockets) -> None:
    assert sockets.requests.next() is None


BIG = bytes(10**7)
WRONG: dict[str, tuple[bytes, str]] = {
    "no HTTP": (b"hello\r\n\r\n", "the request is not HTTP/1.1: Invalid method"),
    "a tunnel": (b"CONNECT x:80 HTTP/1.1\r\n\r\n", "Malformed request: CONNECT"),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "Duplicate Content-Length"),
    "a length of 5,000 digits": (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", "Content-Length overflow"),
    "a length and chunks": (CHUNKED[:-2] + b"Content-Length: 1\r\n\r\n", "Content-Length can't be present"),
    "another transfer": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding is 'gzip, ch"),
    "no chunk": (CHUNKED + b"zz\r\n", "Invalid character in chunk size"),
    "too large": (head(20_001), "allowed are 20000 bytes"),
    "too large in chunks": (CHUNKED + 3 * (b"2000\r\n" + bytes(8192) + b"\r\n"), "allowed are 20000 bytes"),
    "many small chunks": (CHUNKED + 5000 * (b"1;" + b"n" * 60 + b"\r\nx\r\n"), "allowed are 20000 bytes"),
    "a long header": (POST + b"A: " + b"b" * 3 * HEAD_BYTES, f"the header is too large, allowed are {HEAD_BYTES}"),
    "a long header behind": (CHUNKED + b"0\r\nA: " + b"b" * 400_000, "allowed are 20000 bytes"),
    "half a header": (POST, "the header did not arrive in time"),
    "half a body": (head(9) + b"hello", "the body did not arrive in time"),
    "not gzip": (head(5, "Content-Encoding: gzip") + b"hello", "the body is not gzip"),
    "half a gzip": (head(9, "Content-Encoding: gzip") + PACKED[:9], "not one whole gzip stream"),
    "a gzip bomb": (
        head(len(gzip.compress(BIG)), "Content-Encoding: gzip") + gzip.compress(BIG), "allowed are 20000 bytes"
    ),
    "another packing": (head(0, "Content-Encoding: br"), "Content-Encoding is 'br', allowed is gzip"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_follows_a_right_one(sockets: Sockets, name: str) -> None:
    data, text = WRONG[name]
    sockets.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sockets.client.sendall(GET + data)
    assert sockets.requests.next() == Request("GET", "/c", b"", True)
    with pytest.raises(RequestError) as refused:
        sockets.requests.next()
    assert text in refused.value.text and "\n" not in refused.value.text
    assert refused.value.code.name == ("DEADLINE_EXCEEDED" if "in time" in text else "INVALID_ARGUMENT")


def test_a_client_that_ends_in_a_body(sockets: Sockets) -> None:
    sockets.client.sendall(head(9) + b"hello")
    sockets.client.close()
    with pytest.raises(RequestError, match="the body ends too early"):
        sockets.requests.next()
