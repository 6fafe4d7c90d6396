"""Requests to the platform's services: the answer, why there is none, and metrics by label."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prometheus_client import CollectorRegistry, Gauge

from common.health import Health
from infra.http_client import RequestFailed, fetch, metrics
from tests.support.ports import free_port


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers a POST with what it got, and a GET with 500."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(200, json.dumps([self.headers["Content-Type"], self.headers["X-Word"], body]))

        def do_GET(self) -> None:
            self.reply(500, "no luck\n")

        def reply(self, code: int, text: str) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_body_is_posted_as_json_and_not_through_a_proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert json.loads(fetch(server, {"a": [1]}, headers={"X-Word": "w"})) == ["application/json", "w", {"a": [1]}]


def test_a_refusal_has_its_status_and_text_and_silence_has_a_reason(server: str) -> None:
    with pytest.raises(RequestFailed) as refused:
        fetch(f"{server}/x")
    assert (str(refused.value), refused.value.status) == (f"{server}/x answers 500 no luck", 500)
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RequestFailed, match=f"{url}: .*refused") as silent:
        fetch(url)
    assert silent.value.status == 0
    assert metrics(url) == {}


def test_metrics_are_the_largest_of_the_samples_with_the_labels() -> None:
    registry = CollectorRegistry()
    seq = Gauge("seq", "newest delta", ["model"], registry=registry)
    seq.labels("ranker").set(3)
    seq.labels("other").set(7)
    health = Health(port := free_port(), registry)
    try:
        url = f"http://127.0.0.1:{port}"
        assert metrics(url) == {"seq": 7} and metrics(url, model="ranker") == {"seq": 3}
        assert metrics(url, model="none") == {}
    finally:
        health.close()
