"""Lets requests in: the key, the host name, the type of the body, its size; and counts their answers.

Without a key the service listens on loopback. A page of another site in a browser of this machine reaches loopback
too: its requests have another Host, or a body that is not application/json, and are refused.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import Request

from serving.app.gauges import Gauges
from serving.app.problem import Problem
from streaming.contract.contract import parsed
from streaming.contract.schema import MAX_MESSAGE_BYTES, BadMessage

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
BODY_WITHIN_S = 30.0


class Gate:
    """An ASGI application around another one. `key` is what /v1/ asks for; empty: no key, and loopback names only."""

    def __init__(self, inner: Any, key: str, gauges: Gauges) -> None:
        self._inner, self._key, self._gauges = inner, key.encode(), gauges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if refusal := self._refusal(scope):
                await answer(counted, refusal)
            else:
                await self._inner(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._gauges.request(route, status, time.perf_counter() - begun)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = dict(scope["headers"])
        if not self._key:
            host = headers.get(b"host", b"").decode("latin-1")
            if host.rpartition(":")[0] not in LOOPBACK and host not in LOOPBACK:
                return Problem(403, f"Host is {host[:60]!r}; without a key allowed are {', '.join(LOOPBACK)}")
        elif scope["path"].startswith("/v1/"):
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._key):
                return Problem(401, "the API key is missing or wrong; allowed is the header Authorization: Bearer KEY")
        return None


async def answer(send: Send, problem: Problem) -> None:
    """Sends a Problem without an application."""
    body = json.dumps({"error": str(problem)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def body_of(request: Request) -> Any:
    """The JSON object of a request. Raises Problem 400, 408, 413 or 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, f"Content-Type is {kind[:60]!r}; allowed is application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_MESSAGE_BYTES:
                    raise Problem(413, f"the body is too large; allowed are {MAX_MESSAGE_BYTES} bytes")
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {BODY_WITHIN_S:g} s") from None
    try:
        return parsed(bytes(body))
    except BadMessage as e:
        raise Problem(400, str(e).replace("message", "the body", 1)) from None
