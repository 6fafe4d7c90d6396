"""An Airflow in a process of its own, for tests: `airflow dags test` of DAGs as they are asked for, one JSON line each.

    with Airflow(home) as airflow:
        run = airflow.run("sample_examples", {"begin": ..., "end": ...}, platform)
        assert run.tasks["validate"] == "failed" and "seen is" in run.log

One process and one SQLite database for all runs: both cost seconds. It is the command's own code, words parsed and all;
what a scheduler adds (a queue, a process a task) has its test in tests/e2e/test_pipeline.py.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support import PROJECT


@dataclass(frozen=True)
class Run:
    """How a run ended: its state, its tasks' states, what they returned, and the log of them all."""

    state: str
    tasks: dict[str, str]
    returned: dict[str, Any]
    extra: dict[str, Any]
    log: str


class Airflow:
    """`run` is `airflow dags test` there; `ask` any other question that `main` below knows."""

    def __init__(self, home: Path, like: Airflow | None = None) -> None:
        """`like`: one whose database is copied, which is quicker than to make one."""
        self.home, self.log = home, home / "child.log"
        self._lock = threading.Lock()
        home.mkdir(parents=True, exist_ok=True)
        if like is not None:
            like.ask(verb="look", daily=False)  # there is one now, and nobody writes to it
            old, new = (closing(sqlite3.connect(of / "airflow.db")) for of in (like.home, home))
            with old as from_there, new as to_here:
                from_there.backup(to_here)
        settings = {
            "CORE__DAGS_FOLDER": PROJECT / "dags",
            "CORE__LOAD_EXAMPLES": False,
            "CORE__UNIT_TEST_MODE": False,
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
            "LOGGING__COLORED_CONSOLE_LOG": False,
            "USAGE_DATA_COLLECTION__ENABLED": False,
        }
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "MINUTEHAND_"))}
        env |= {f"AIRFLOW__{name}": str(value) for name, value in settings.items()}
        env |= {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(PROJECT)}
        with self.log.open("wb") as out:
            self._child = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                env=env,
                text=True,
            )

    def ask(self, **question: Any) -> Any:
        with self._lock:
            assert self._child.stdin is not None and self._child.stdout is not None
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        assert answer, f"Airflow ended:\n{self.log.read_text()[-5000:]}"
        return json.loads(answer)

    def run(
        self, dag: str, conf: dict[str, Any], platform: Path, at: str = "", done: str = "", daily: bool = False
    ) -> Run:
        """`at`: the logical date. `done`: tasks that an earlier try of the same run had finished, as a pattern."""
        start = self.log.stat().st_size
        found = self.ask(verb="run", dag=dag, conf=conf, platform=str(platform), at=at, done=done, daily=daily)
        with self.log.open() as f:
            f.seek(start)
            return Run(**found, log=f.read())

    def __enter__(self) -> Airflow:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(120)
        self._child.stdout.close()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Airflow prints goes to the log
    from airflow.utils import db

    db.initdb()
    _without_pauses()
    for line in sys.stdin:
        question = json.loads(line)
        answer = VERBS[question.pop("verb")](**question)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _bag(daily: bool) -> Any:
    """All DAGs, read anew."""
    from airflow.dag_processing.dagbag import DagBag

    os.environ["MINUTEHAND_DAILY"] = str(daily).lower()
    return DagBag(PROJECT / "dags")


def _look(daily: bool) -> dict[str, Any]:
    """What a reader of the DAGs wants to know, by id; and the import errors."""
    from airflow.sdk.definitions.dag import DAG

    bag = _bag(daily)
    found = {}
    for name, dag in bag.dags.items():
        assert isinstance(dag, DAG)
        dag.check_cycle()
        assets = getattr(dag.timetable, "asset_condition", None)
        found[name] = {
            "doc": dag.doc_md,
            "catchup": dag.catchup,
            "at_once": dag.max_active_runs,
            "schedule": type(dag.timetable).__name__,
            "assets": [asset.name for asset in assets.objects] if assets else [],
            "params": {n: dag.params.get_param(n).description for n in dag.params},
            "tasks": {
                t.task_id: {"owner": t.owner, "retries": t.retries, "after": sorted(t.upstream_task_ids)}
                for t in dag.tasks
            },
        }
    return {"errors": {str(k): str(v) for k, v in bag.import_errors.items()}, "dags": found}


def _run(dag: str, conf: dict[str, Any], platform: str, at: str, done: str, daily: bool) -> dict[str, Any]:
    from airflow.cli import cli_parser
    from airflow.models.asset import AssetEvent
    from airflow.models.dagrun import DagRun
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    os.environ |= {"MINUTEHAND_PLATFORM": platform, "MINUTEHAND_DAILY": str(daily).lower()}
    words = ["dags", "test", dag, *([at] if at else []), "--conf", json.dumps(conf)]
    args = cli_parser.get_parser().parse_args([*words, *(["--mark-success-pattern", done] if done else [])])
    try:
        args.func(args)
        code = "0"
    except SystemExit as e:
        code = str(e.code)
    with create_session() as session:
        run = session.query(DagRun).filter_by(dag_id=dag).order_by(DagRun.id.desc()).first()
        kept = session.query(XComModel).filter_by(run_id=run.run_id, dag_id=dag, key="return_value").all()
        returned = {x.task_id: XComModel.deserialize_value(x) for x in kept}
        events = session.query(AssetEvent).filter_by(source_run_id=run.run_id, source_dag_id=dag)
        extra = {k: v for event in events for k, v in event.extra.items() if k != "from_dag_test"}
        states = {t.task_id: str(t.state) for t in run.get_task_instances(session=session)}
        assert (code == "0") == (str(run.state) == "success"), (code, run.state)
        return {"state": str(run.state), "tasks": states, "returned": returned, "extra": extra}


def _without_pauses() -> None:
    """Ten seconds from a failed try to the next one say nothing."""
    from airflow.cli.commands import dag_command

    bagged = dag_command.get_bagged_dag

    def found(*args: Any, **named: Any) -> Any:
        dag = bagged(*args, **named)
        for task in dag.tasks:
            task.retry_delay = timedelta()
        return dag

    dag_command.get_bagged_dag = found


VERBS = {"run": _run, "look": _look}

if __name__ == "__main__":
    main()
