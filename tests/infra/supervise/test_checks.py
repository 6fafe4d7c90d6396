"""Readiness checks say what is wrong; nothing a service does makes them raise, which would end the supervisor."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

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


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"null", b'{"jobs": [{}], "scheduler": 3}', b'{"jobs": 1, "scheduler": []}']
)
def test_json_of_another_shape_is_a_reason(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "fetch", lambda url, timeout_s: body)
    for check in (
        checks.flink_running("http://join"),
        checks.model_available("http://server", "ranker"),
        checks.airflow_component("http://airflow", "scheduler"),
    ):
        assert check()


def test_a_join_whose_checkpoints_fail_commits_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {"/jobs/overview": {"jobs": [{"jid": "j", "state": "RUNNING"}]}}
    monkeypatch.setattr(checks, "fetch", lambda url, timeout_s: json.dumps(answers[url.removeprefix("http://join")]))
    check = checks.flink_running("http://join")

    def after(completed: int, failed: int) -> str:
        answers["/jobs/j/checkpoints"] = {"counts": {"completed": completed, "failed": failed}}
        return check()

    most = checks.MOST_FAILED
    assert after(0, 0) == after(0, most) == ""  # its tasks may still start
    reason = "no example is committed: Flink's checkpoints fail (is the disk full, or the broker away?)"
    assert after(0, most + 1) == after(0, 99) == reason
    assert after(1, 99) == after(1, 99 + most) == "" and after(1, 100 + most) == reason
    assert after(2, 100 + most) == ""
    assert after(0, 1) == after(0, 1 + most) == "" and after(0, 2 + most) == reason  # another process of the join
    answers["/jobs/overview"] = {"jobs": [{"jid": "j", "state": "FAILING"}]}
    assert check() == "job state: FAILING"
