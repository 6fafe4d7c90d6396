"""The routes of the service, and its OpenAPI at /openapi.json."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from common import process
from serving.app.gauges import Gauges
from serving.app.problem import Problem
from serving.app.service import Service
from serving.app.web import openapi
from serving.app.web.gate import Gate, body_of
from streaming.declaration import Declaration
from streaming.topics import ITEMS, USERS
from streaming.views import Views

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""It loads nothing from elsewhere, and no other site may show it in a frame, where a click would be somebody else's."""

Body = Annotated[Any, Depends(body_of)]

log = process.logger("app")


class Api:
    """The ASGI application. `service` is None until all that it needs is there; `reason` tells what is not."""

    def __init__(
        self, declaration: Declaration, views: Views, key: str, gauges: Gauges, reason: Callable[[], str]
    ) -> None:
        self.service: Service | None = None
        self._reason, self._gauges = reason, gauges
        self._app = FastAPI(title="Minutehand", version="1", docs_url=None, redoc_url=None)
        bodies = openapi.bodies(declaration, views)
        for path, route, schema in (
            ("/v1/recommend", self._recommend, bodies["recommend"]),
            ("/v1/events", self._events, bodies["events"]),
            ("/v1/items", self._items, bodies[ITEMS]),
            ("/v1/users", self._users, bodies[USERS]),
        ):
            more = openapi.operation(schema, bool(key))
            answers = openapi.ANSWERS[path]
            self._app.post(path, responses=answers, openapi_extra=more, name=path.rpartition("/")[2])(route)
        self._app.delete(
            "/v1/users/{user_id:path}", responses=openapi.ANSWERS["forget"], name="forget",
            openapi_extra=openapi.secured(bool(key)),
        )(self._forget)  # fmt: skip
        self._app.get("/", include_in_schema=False)(self._page)
        self._app.get("/healthz", name="healthz", response_class=Response)(self._healthz)
        self._app.get("/metrics", name="metrics", response_class=Response)(self._metrics)
        self._app.add_exception_handler(Problem, _problem)
        self._app.add_exception_handler(HTTPException, _no_route)
        self._app.add_exception_handler(sqlite3.Error, _storage)
        self._app.add_exception_handler(OSError, _storage)
        self._app.add_exception_handler(Exception, _unexpected)
        self.asgi = Gate(self._app, key, gauges)

    def _ready(self) -> Service:
        if self.service is None:
            raise Problem(503, f"the service is not ready: {self._reason()}")
        return self.service

    def _recommend(self, body: Body) -> Response:
        """The k best items for a user. Each one is logged as shown, unless `log` is false."""
        return _json(200, self._ready().recommend(body))

    def _events(self, body: Body) -> Response:
        """One event, or several under `events`: actions by recommendation, or whole impressions and actions."""
        return _json(*self._ready().events(body))

    def _items(self, body: Body) -> Response:
        """The attributes of a new or changed item, or of several under `items`."""
        return _json(*self._ready().attributes(ITEMS, body))

    def _users(self, body: Body) -> Response:
        """The attributes of a new or changed user, or of several under `users`."""
        return _json(*self._ready().attributes(USERS, body))

    def _forget(self, user_id: str) -> Response:
        """Forgets what a user did, and the user's attributes. A text of digits is written in quotes."""
        return _json(200, self._ready().forget(user_id))

    async def _page(self) -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    async def _healthz(self) -> Response:
        """200 when the service is ready, or 503 with the reason."""
        reason = self._reason()
        return Response((reason or "ok") + "\n", 503 if reason else 200, media_type="text/plain")

    async def _metrics(self) -> Response:
        """The service's metrics."""
        return Response(generate_latest(self._gauges.registry), media_type=CONTENT_TYPE_LATEST)


def _json(status: int, content: Any) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return _json(problem.status, {"error": str(problem)})


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "there is no such path", 405: "the path does not have this method"}.get(error.status_code)
    return Response(
        orjson.dumps({"error": f"{text or error.detail}; allowed are those of /openapi.json"}),
        error.status_code, headers=dict(error.headers or {}), media_type="application/json",
    )  # fmt: skip


def _storage(request: Request, error: Exception) -> Response:
    log.error("%s: %r", request.url.path, error)
    return _json(503, {"error": "a store of the service failed; ask again later"})


def _unexpected(request: Request, error: Exception) -> Response:
    return _json(500, {"error": "the service failed in a way that nobody expected; its log has the reason"})
