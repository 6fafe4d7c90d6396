"""Readiness checks say what is wrong; nothing a service does makes them raise, which would end the supervisor."""

from __future__ import annotations

import socket
import threading

import pytest

from infra.supervise import checks


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nno broker", "answers 503 no broker"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\n", "answers 503"),  # then it stalls
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "timed out"),
        (b"not HTTP\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "Expecting"),
    ],
)
def test_what_a_service_answers(answer: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "TIMEOUT_S", 0.3)
    server, done = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve() -> None:
        client = server.accept()[0]
        with client:
            client.recv(1 << 16)
            client.sendall(answer)
            done.wait(30)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert said in checks.airflow_component(f"http://127.0.0.1:{server.getsockname()[1]}", "scheduler")()
    finally:
        done.set()
        thread.join()
        server.close()
