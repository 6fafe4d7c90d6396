"""A client of Airflow's REST API. (A call of Airflow's command line takes half a minute.)

airflow = Airflow("http://127.0.0.1:8080", "admin", password)
run = airflow.trigger("sample_examples", {"day": "2022-05-07"})
tasks = airflow.wait("sample_examples", run)          # name -> Task, in order of their start
"""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from common.errors import InputError
from infra.http_client import RequestFailed, fetch

ATTEMPTS = 4
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")


class AirflowError(InputError):
    """Airflow refused a request, did not answer, or a run failed. The message is Airflow's own."""


class Task(NamedTuple):
    """A task instance of a run; `result` is what it returned."""

    name: str
    state: str
    seconds: float
    result: Any
    tries: int


class Airflow:
    """A session of one user. Its methods raise AirflowError."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self.token = url.rstrip("/"), ""
        self.token = self.call("/auth/token", {"username": user, "password": password})["access_token"]

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that answers a GET, or a POST of `body`. Repeats a GET that is answered with a 500."""
        headers = {"Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        attempt = 1
        while True:
            try:
                return json.loads(fetch(self.url + path, body, timeout_s=60, headers=headers))
            except RequestFailed as e:
                if body is not None or e.status < 500 or attempt == ATTEMPTS:
                    raise AirflowError(str(e)) from None
            time.sleep(attempt)
            attempt += 1

    def dags(self) -> set[str]:
        return {dag["dag_id"] for dag in self.call("/api/v2/dags?limit=100")["dags"]}

    def import_errors(self) -> list[str]:
        errors = self.call("/api/v2/importErrors")["import_errors"]
        return [f"{e['filename']}: {e['stack_trace'].strip().splitlines()[-1]}" for e in errors]

    def trigger(self, dag: str, conf: Mapping[str, Any]) -> str:
        """Starts a run and returns its id."""
        run: str = self.call(f"/api/v2/dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]
        return run

    def runs(self, dag: str) -> list[str]:
        """The ids of the newest runs, the newest first."""
        runs = self.call(f"/api/v2/dags/{dag}/dagRuns?order_by=-run_after&limit=20")["dag_runs"]
        return [str(run["dag_run_id"]) for run in runs]

    def clear(self, dag: str, run: str, tasks: Sequence[str]) -> None:
        """Runs these tasks and those after them again."""
        body = {"dag_run_id": run, "task_ids": list(tasks), "include_downstream": True, "only_failed": False}
        self.call(f"/api/v2/dags/{dag}/clearTaskInstances", body | {"dry_run": False})

    def state(self, dag: str, run: str) -> str:
        state: str = self.call(_path(dag, run))["state"]
        return state

    def follower(self, dag: str, of: str) -> str | None:
        """The run of `dag` that an asset event of the run `of` began."""
        for run in self.runs(dag):
            events = self.call(f"{_path(dag, run)}/upstreamAssetEvents")["asset_events"]
            if any(event["source_run_id"] == of for event in events):
                return run
        return None

    def tasks(self, dag: str, run: str) -> dict[str, Task]:
        """Name -> task, in order of their start, without their results: each result takes a request."""
        instances = self.call(f"{_path(dag, run)}/taskInstances")["task_instances"]
        instances.sort(key=lambda task: (task["start_date"] or "~", task["task_id"]))
        return {
            t["task_id"]: Task(t["task_id"], t["state"] or "waiting", t["duration"] or 0.0, None, t["try_number"])
            for t in instances
        }

    def result(self, dag: str, run: str, task: str) -> Any:
        """The value that a task returned; None if there is none."""
        try:
            return self.call(f"{_path(dag, run, task)}/xcomEntries/return_value")["value"]
        except AirflowError:
            return None

    def outcome(self, dag: str, run: str, task: str) -> str:
        """The reason that a task's log ends with: its error, why it was skipped, or else its last line."""
        path = _path(dag, run, task)
        tries = max(1, self.call(path)["try_number"])
        content = self.call(f"{path}/logs/{tries}")["content"]
        entries = [entry if isinstance(entry, dict) else {"event": entry} for entry in content]
        if errors := [entry["error_detail"] for entry in entries if entry.get("error_detail")]:
            return str(errors[-1][0]["exc_value"])
        if reasons := [entry["reason"] for entry in entries if entry.get("reason")]:
            return str(reasons[-1])
        lines = [str(entry.get("event", "")) for entry in entries]
        return next((line for line in reversed(lines) if line.strip() and not line.startswith("::")), "an empty log")

    def wait(
        self, dag: str, run: str, timeout_s: float = 900, tell: Callable[[Task], None] = lambda task: None
    ) -> dict[str, Task]:
        """Returns the tasks when the run has succeeded. Calls `tell` with each task that ends.

        Raises AirflowError if a task fails, with that task's error, or when the time is over.
        """
        deadline = time.monotonic() + timeout_s
        ended: dict[str, Task] = {}
        while True:
            state = self.state(dag, run)
            for task in self.tasks(dag, run).values():
                # A task that failed may be tried again while the run goes on.
                if task.name not in ended and task.state in (ENDED if state in ENDED else ("success", "skipped")):
                    ended[task.name] = task._replace(result=self.result(dag, run, task.name))
                    tell(ended[task.name])
            if state == "success":
                return ended
            if state == "failed":
                failed = [task.name for task in ended.values() if task.state == "failed"]
                reasons = "; ".join(f"{name}: {self.outcome(dag, run, name)}" for name in failed)
                raise AirflowError(f"{dag} failed: {reasons}")
            if time.monotonic() > deadline:
                raise AirflowError(f"{dag} is {state} after {timeout_s:g} s")
            time.sleep(1)


def _path(dag: str, run: str, task: str = "") -> str:
    """The address of a run, or of one of its tasks."""
    path = f"/api/v2/dags/{dag}/dagRuns/{urllib.parse.quote(run)}"
    return f"{path}/taskInstances/{task}" if task else path
