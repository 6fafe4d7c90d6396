"""The benchmark of serving: its clients ask a real gRPC and HTTP server, its figures follow from the calls."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import PROJECT

sys.path.insert(0, str(PROJECT))

from benchmarks import serving  # noqa: E402  # not installed: imported by the line above
from benchmarks.common import pages  # noqa: E402
from benchmarks.load.client import Call  # noqa: E402
from benchmarks.load.server import Clients  # noqa: E402
from common.errors import InputError  # noqa: E402

ALLOWED = ["p99_ratio", "first_delta_p99_ratio", "grpc_1", "grpc_4", "rest_1", "rest_4", "available_s", "rss_vs_rows"]


class Answers(BaseHTTPRequestHandler):
    """Answers 200 to each third request, 500 to the others."""

    protocol_version = "HTTP/1.1"
    asked: list[bytes] = []

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if len(self.asked) % 3 == 0 else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def addresses() -> Iterator[dict[str, str]]:
    """A server of gRPC that answers every Predict with nothing, and `Answers` for REST."""
    predict = grpc.method_handlers_generic_handler(
        "tensorflow.serving.PredictionService",
        {"Predict": grpc.unary_unary_rpc_method_handler(lambda request, context: b"")},
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers=[predict])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    rest = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=rest.serve_forever).start()
    yield {"paced": f"127.0.0.1:{port}", "grpc": f"127.0.0.1:{port}", "rest": f"127.0.0.1:{rest.server_port}"}
    rest.shutdown()
    rest.server_close()
    server.stop(None).wait()


def test_the_clients_ask_and_note_each_call(addresses: dict[str, str]) -> None:
    everybody = {kind: Clients(2, kind, address, 100) for kind, address in addresses.items()}
    for clients in everybody.values():
        with clients:
            clients.go()
            threading.Event().wait(0.2)
            calls = clients.calls()
        kind = next(name for name, each in everybody.items() if each is clients)
        assert calls and all(call.seconds > 0 for call in calls), kind
        assert {call.ok for call in calls} == ({True, False} if kind == "rest" else {True})
        if kind == "paced":
            due = sorted({round(1000 * (call.due - calls[0].due)) % 5 for call in calls[: len(calls) // 2]})
            assert due == [0], "a request is due each 5 ms, whenever the last one was answered"
    assert b'"instances": [{"viewer"' in Answers.asked[0]


def a_round(idle: float, applying: float, first: float, grpc_1: float) -> dict[str, Any]:
    rates = {f"{kind}_{number}": grpc_1 * number for kind, number in serving.RATES}
    ms = {"idle": [idle] * 10, "applying": [applying] * 10, "first_delta": [first] * 10}
    return {"ms": ms, "failed": 1, "delta_s": [0.5, 0.2], "available_s": 4.0, "resident": 1000, **rates}


def test_the_summary_has_the_median_of_the_rounds_ratios() -> None:
    rounds = {
        "ours": [a_round(2, 2, 3, 400), a_round(4, 6, 8, 500), a_round(10, 30, 10, 600)],
        "before": [a_round(2, 2, 2, 100), a_round(2, 2, 2, 100), a_round(2, 2, 2, 100)],
    }
    ours = serving.summed_up(rounds["ours"], 100)
    assert ours["summary"] == {
        "p99_ratio": 1.5, "first_delta_p99_ratio": 1.5, "grpc_1": 500, "grpc_4": 2000, "rest_1": 500, "rest_4": 2000,
        "available_s": 4.0, "rss_vs_rows": 10.0,
    }  # fmt: skip
    assert list(ours["summary"]) == ALLOWED and ours["failed"] == 3
    assert ours["latency"]["idle"] == {"p50_ms": 4, "p99_ms": 10, "p99.9_ms": 10, "requests": 30}
    assert serving.times_faster(rounds)["before"]["grpc_1"]["median"] == 5


def test_a_request_belongs_to_the_deltas_during_which_it_was_open() -> None:
    calls = [Call(0.0, 0.5, True), Call(0.9, 0.2, True), Call(1.5, 0.1, True), Call(2.1, 0.1, True)]
    assert serving.within(calls, [(1.0, 2.0)]) == pytest.approx([200, 100])


def test_a_server_of_another_checkout_is_started_with_its_own_code(tmp_path: Path) -> None:
    args = serving.arguments().parse_args(["--before", str(tmp_path), "--server", "/bin/true"])
    for number in range(3):
        (tmp_path / str(number)).mkdir()
    ours, before, binary = serving.contestants(args, tmp_path)
    assert (ours.name, before.name, binary.name) == ("ours", "before", "/bin/true")
    assert before.checkout == tmp_path and binary.command == ["/bin/true"]
    assert before.command == ours.command and ours.checkout == binary.checkout == PROJECT
    assert len({ours.served, before.served, binary.served}) == 3
    with pytest.raises(InputError, match="/bin/true serves no version: "), binary.started():
        pass


def test_the_page_has_a_column_for_each_server() -> None:
    figures = {name: serving.summed_up([a_round(2, 3, 4, 100)], 100) for name in ("ours", "before")}
    result = {
        "date": "2026-11-30 12:00", "commit": "abc", "before": "def", "command": "run", "rounds": 1, "rows": 10,
        "machine": {"cpu": "one", "cores": 2}, "delta_rows": 5, "chunk_rows": 2, "requests_per_s": 200,
        "rows_per_request": 16, "goals": serving.GOALS, "servers": figures,
    }  # fmt: skip
    text = pages.serving(result)
    assert "| | ours | before |" in text and "| p50 / p99 / p99.9 idle, ms | 2 / 2 / 2 | 2 / 2 / 2 |" in text
    assert "| p99 while a delta is applied / idle; goal <= 1.2 | 1.5 | 1.5 |" in text
    assert "commit abc; before: commit def;" in text
