"""Runs DAGs by `airflow dags test` on a running platform, one after the other, and prints the state of each task.

python -m infra.tools.dags_test --name demo                                  # all five, in the order of the data
python -m infra.tools.dags_test --name demo 'watch_platform={"drift": 1}'    # one, with values of its form

The runs have a database of their own (<var>/<name>/dags_test): in the platform's database, the scheduler would start
the same runs. Exit code 1 if a run failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from common import process
from infra.airflow import services as airflow
from infra.cli.command import settings_flags, settings_of
from infra.platform import Platform
from infra.settings import Settings

DAGS = ("sample_examples", "batch_warm_start", "materialize_features", "publish_base", "watch_platform")


class Bench:
    """`airflow dags test` on a platform, in a folder that is emptied first."""

    def __init__(self, platform: Platform) -> None:
        platform.require_running()
        facts = platform.facts()
        self.folder = platform.folder / "dags_test"
        shutil.rmtree(self.folder, ignore_errors=True)
        settings = Settings.from_dict(facts["settings"]).with_(airflow_db="sqlite")
        addresses = {"airflow": "http://127.0.0.1:0"} | facts["addresses"]  # the runs ask no API server
        self.env = airflow.environment(settings, self.folder, addresses, airflow.secrets_of(self.folder))
        self._airflow("db", "migrate", to="migrate")

    def _airflow(self, *words: str, to: str) -> int:
        with self.log(to).open("wb") as out:
            command = [sys.executable, "-m", "airflow", *words]
            return subprocess.run(command, env={**os.environ, **self.env}, stdin=-3, stdout=out, stderr=out).returncode

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def run(self, dag: str, conf: str) -> tuple[bool, list[tuple[str, str, float]]]:
        """Returns True if the run succeeds, and each task's name, state and seconds, in the order of their start."""
        code = self._airflow("dags", "test", dag, *(["--conf", conf] if conf else []), to=dag)
        with closing(sqlite3.connect(self.folder / "airflow.db")) as db:
            (state, run) = db.execute(
                "select state, run_id from dag_run where dag_id = ? order by id desc", (dag,)
            ).fetchone() or ("not run", "")
            query = "select task_id, state, coalesce(duration, 0) from task_instance where dag_id = ? and run_id = ?"
            tasks = db.execute(f"{query} order by start_date is null, start_date", (dag, run)).fetchall()
        return code == 0 and state == "success", tasks


def dag_and_form(text: str) -> tuple[str, str]:
    dag, _, form = text.partition("=")
    if dag not in DAGS:
        raise argparse.ArgumentTypeError(f"is {dag!r}, allowed are {', '.join(DAGS)}")
    return dag, form


def run(args: argparse.Namespace) -> int:
    bench = Bench(Platform(settings_of(args)))
    chosen = args.dag or [(dag, "") for dag in DAGS]
    failed = []
    for dag, conf in chosen:
        began = time.monotonic()
        green, tasks = bench.run(dag, conf)
        state = "success" if green else "failed"
        print(f"airflow dags test {dag}: {state}, {time.monotonic() - began:.0f} s", flush=True)
        for name, state, seconds in tasks:
            print(f"  {name:12} {state:16} {seconds:6.1f} s", flush=True)
        if not green:
            failed.append(dag)
            print(f"  see {bench.log(dag)}", flush=True)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} green" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return process.FAILED if failed else process.DONE


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("infra.tools.dags_test", __doc__ or "", parents=[settings_flags()])
    parser.add_argument("dag", nargs="*", metavar="DAG[=FORM]", type=dag_and_form, help="with form values as JSON")
    args = parser.parse_args(argv)
    return process.run(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
