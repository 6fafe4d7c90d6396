"""The client of Airflow's REST API, against a stand-in for `fetch`: repeats, outcomes, and the wait for a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from infra.airflow import rest
from infra.airflow.rest import Airflow, AirflowError, Task
from infra.http_client import RequestFailed

RUN = "/api/v2/dags/d/dagRuns/manual__2026-01-01T00%3A00%3A00%2B00%3A00"
RUN_ID = "manual__2026-01-01T00:00:00+00:00"


class Server:
    """Answers by path; of a list of answers, one after the other. A number is a refusal with that status."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers: dict[str, Any] = {"/auth/token": {"access_token": "t"}} | answers
        self.asked: list[str] = []

    def fetch(self, url: str, body: Any = None, *, timeout_s: float, headers: Mapping[str, str]) -> bytes:
        path = url.removeprefix("http://h")
        self.asked.append(path)
        assert ("Authorization" in headers) == (path != "/auth/token")
        answer = self.answers[path]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, int):
            raise RequestFailed(f"{url} answers {answer} no", answer)
        return json.dumps(answer).encode()


def client(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> tuple[Airflow, Server]:
    server = Server(answers)
    monkeypatch.setattr(rest, "fetch", server.fetch)
    monkeypatch.setattr(rest.time, "sleep", lambda s: None)
    return Airflow("http://h/", "admin", "p"), server


def test_a_get_is_repeated_after_a_500_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    dag = "/api/v2/dags/d/dagRuns"
    airflow, server = client(monkeypatch, {RUN: [500, 503, {"state": "queued"}], dag: 500, "/no": 404, "/away": 500})
    assert airflow.state("d", RUN_ID) == "queued"
    with pytest.raises(AirflowError, match="answers 500 no"):
        airflow.trigger("d", {})
    with pytest.raises(AirflowError, match="http://h/no answers 404"):
        airflow.call("/no")
    with pytest.raises(AirflowError, match="answers 500"):
        airflow.call("/away")
    assert [server.asked.count(path) for path in (RUN, dag, "/no", "/away")] == [3, 1, 1, rest.ATTEMPTS]


def test_a_run_is_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def tasks(*states: str | None) -> dict[str, Any]:
        return {"task_instances": [
            {"task_id": f"t{i}", "state": state, "duration": i, "start_date": f"{i}", "try_number": 1}
            for i, state in enumerate(states)
        ]}  # fmt: skip

    result = {f"{RUN}/taskInstances/t0/xcomEntries/return_value": {"value": {"rows": 3}}}
    airflow, _ = client(monkeypatch, result | {
        RUN: [{"state": "running"}, {"state": "success"}],
        f"{RUN}/taskInstances": [tasks("success", None), tasks("success", "skipped")],
        f"{RUN}/taskInstances/t1/xcomEntries/return_value": 404,
    })  # fmt: skip
    ended: list[Task] = []
    finished = airflow.wait("d", RUN_ID, tell=ended.append)
    assert (
        ended
        == list(finished.values())
        == [Task("t0", "success", 0, {"rows": 3}, 1), Task("t1", "skipped", 1, None, 1)]
    )

    airflow, _ = client(monkeypatch, result | {
        RUN: {"state": "failed"},
        f"{RUN}/taskInstances": tasks("success", "failed"),
        f"{RUN}/taskInstances/t1": {"try_number": 2},
        f"{RUN}/taskInstances/t1/xcomEntries/return_value": 404,
        f"{RUN}/taskInstances/t1/logs/2": {"content": [
            {"event": "begun"}, {"error_detail": [{"exc_value": "no such file"}]}, {"event": "::endgroup::"},
        ]},
    })  # fmt: skip
    with pytest.raises(AirflowError, match="^d failed: t1: no such file$"):
        airflow.wait("d", RUN_ID)


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ([{"event": "a"}, {"event": "skipping", "reason": "nothing new"}, {"event": "b"}], "nothing new"),
        (["a", {"event": "b"}, "  ", {"event": "::endgroup::"}], "b"),
        ([], "an empty log"),
    ],
)
def test_the_outcome_of_a_task_is_in_its_log(
    monkeypatch: pytest.MonkeyPatch, content: list[object], outcome: str
) -> None:
    airflow, _ = client(monkeypatch, {f"{RUN}/taskInstances/t": {"try_number": 0},
                                      f"{RUN}/taskInstances/t/logs/1": {"content": content}})  # fmt: skip
    assert airflow.outcome("d", RUN_ID, "t") == outcome
