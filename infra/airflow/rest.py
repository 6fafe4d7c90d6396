"""Airflow by its REST API: what a person does on its page. (A call of its CLI takes half a minute.)

airflow = Airflow("http://127.0.0.1:8080", "admin", password)
run = airflow.trigger("sample_examples", {"day": "2022-05-07"})
tasks = airflow.wait("sample_examples", run)          # Task by name, in order of their start; raises what failed
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

ASKED_TIMES = 4
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")


class AirflowError(RuntimeError):
    """A refusal of Airflow, or a failure in it, in its own words."""


class Task(NamedTuple):
    """A task instance of a run; `result` is what it returned."""

    name: str
    state: str
    seconds: float
    result: Any
    tries: int


class Airflow:
    """A session of one user. Raises AirflowError for what is refused, and where nobody answers."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self.token = url.rstrip("/"), ""
        self.token = self.call("/auth/token", {"username": user, "password": password})["access_token"]

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """GET, or POST of `body`; the JSON that comes back. A run in the making may answer 500: a GET asks again."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + path, data, headers)
        for attempt in range(ASKED_TIMES):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as e:
                with e:
                    reply = e.read(2000).decode(errors="replace")
                words = f"{request.get_method()} {path} answers {e.code}: {reply}"
                if data is not None or e.code < 500:
                    break
            except OSError as e:
                words = f"{self.url}{path}: {getattr(e, 'reason', None) or e}"
                break
            time.sleep(1 + attempt)
        raise AirflowError(words)

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
        """The ids of its newest runs, the newest first."""
        runs = self.call(f"/api/v2/dags/{dag}/dagRuns?order_by=-run_after&limit=20")["dag_runs"]
        return [str(run["dag_run_id"]) for run in runs]

    def clear(self, dag: str, run: str, tasks: Sequence[str]) -> None:
        """These tasks are done again, and what comes after them; what came before is not."""
        body = {"dag_run_id": run, "task_ids": list(tasks), "include_downstream": True, "only_failed": False}
        self.call(f"/api/v2/dags/{dag}/clearTaskInstances", body | {"dry_run": False})

    def state(self, dag: str, run: str) -> str:
        state: str = self.call(f"/api/v2/dags/{dag}/dagRuns/{urllib.parse.quote(run)}")["state"]
        return state

    def follower(self, dag: str, of: str) -> str | None:
        """The run of `dag` that an asset event of the run `of` began."""
        for run in self.runs(dag):
            path = f"/api/v2/dags/{dag}/dagRuns/{urllib.parse.quote(run)}/upstreamAssetEvents"
            if any(e["source_run_id"] == of for e in self.call(path)["asset_events"]):
                return run
        return None

    def tasks(self, dag: str, run: str) -> dict[str, Task]:
        """By name, in order of their start; without their results, each of which is a question of its own."""
        instances = self.call(f"/api/v2/dags/{dag}/dagRuns/{urllib.parse.quote(run)}/taskInstances")["task_instances"]
        instances.sort(key=lambda task: (task["start_date"] or "~", task["task_id"]))
        return {
            t["task_id"]: Task(t["task_id"], t["state"] or "waiting", t["duration"] or 0.0, None, t["try_number"])
            for t in instances
        }

    def result(self, dag: str, run: str, task: str) -> Any:
        """The value that a task returned; None if there is none."""
        path = f"/api/v2/dags/{dag}/dagRuns/{urllib.parse.quote(run)}/taskInstances/{task}"
        try:
            return self.call(f"{path}/xcomEntries/return_value")["value"]
        except AirflowError:
            return None

    def last_words(self, dag: str, run: str, task: str) -> str:
        """The last thing a task said: its error, the reason it was skipped for, or its last line."""
        path = f"/api/v2/dags/{dag}/dagRuns/{urllib.parse.quote(run)}/taskInstances/{task}"
        tries = max(1, self.call(path)["try_number"])
        log = self.call(f"{path}/logs/{tries}")["content"]
        lines = [str(line.get("event", "")) if isinstance(line, dict) else str(line) for line in log]
        errors = [line["error_detail"] for line in log if isinstance(line, dict) and line.get("error_detail")]
        if errors:
            return str(errors[-1][0]["exc_value"])
        if reasons := [line["reason"] for line in log if isinstance(line, dict) and line.get("reason")]:
            return str(reasons[-1])
        spoken = [line for line in lines if line.strip() and not line.startswith("::")]
        return spoken[-1] if spoken else "it logged nothing"

    def wait(
        self, dag: str, run: str, timeout_s: float = 900, tell: Callable[[Task], None] = lambda task: None
    ) -> dict[str, Task]:
        """Returns the tasks when the run has succeeded; `tell` gets each as it ends.

        Raises AirflowError with the failed task's own words, or when the time is over.
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
                words = [
                    f"{t.name}: {self.last_words(dag, run, t.name)}" for t in ended.values() if t.state == "failed"
                ]
                raise AirflowError(f"{dag} failed: {'; '.join(words)}")
            if time.monotonic() > deadline:
                raise AirflowError(f"{dag} is {state} after {timeout_s:g} s")
            time.sleep(1)
