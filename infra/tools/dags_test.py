"""Every DAG by `airflow dags test`, one after the other, on a running platform; what its tasks came to.

python -m infra.tools.dags_test --name demo                                  # all five, in the order of the data
python -m infra.tools.dags_test --name demo 'watch_platform={"drift": 1}'    # one, with a form

Airflow runs the tasks in the command's own process, on a database of its own (<var>/<name>/dags_test): in the
platform's, the scheduler would take the same run up. Exit code 1 if a run failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from infra.airflow import services as airflow
from infra.cli.command import settings_flags, settings_of
from infra.platform import Platform, PlatformError
from infra.settings import SettingError, Settings

DAGS = ("sample_examples", "batch_warm_start", "materialize_features", "publish_base", "watch_platform")


class Bench:
    """`airflow dags test` on a platform, in `folder`, which is emptied."""

    def __init__(self, platform: Platform) -> None:
        if not platform.is_running():
            raise PlatformError(f"the platform is not running ({platform.folder}); start it with: minutehand up")
        facts = platform.facts()
        self.folder = platform.folder / "dags_test"
        shutil.rmtree(self.folder, ignore_errors=True)
        settings = Settings.from_dict(facts["settings"]).with_(airflow_db="sqlite")
        where = {"airflow": "http://127.0.0.1:0"} | facts["addresses"]  # no server is asked
        hidden = airflow.secrets_of(self.folder)
        self.env = airflow.environment(settings, self.folder, where, hidden)
        self._airflow("db", "migrate", to="migrate")

    def _airflow(self, *words: str, to: str) -> int:
        with self.log(to).open("wb") as out:
            command = [sys.executable, "-m", "airflow", *words]
            return subprocess.run(command, env={**os.environ, **self.env}, stdin=-3, stdout=out, stderr=out).returncode

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def run(self, dag: str, conf: str) -> tuple[bool, list[tuple[str, str, float]]]:
        """True if the run succeeded, and each task's name, state and seconds, in the order of their start."""
        code = self._airflow("dags", "test", dag, *(["--conf", conf] if conf else []), to=dag)
        with sqlite3.connect(self.folder / "airflow.db") as db:
            (state, run) = db.execute(
                "select state, run_id from dag_run where dag_id = ? order by id desc", (dag,)
            ).fetchone() or ("not run", "")
            asked = "select task_id, state, coalesce(duration, 0) from task_instance where dag_id = ? and run_id = ?"
            tasks = db.execute(f"{asked} order by start_date is null, start_date", (dag, run)).fetchall()
        return code == 0 and state == "success", tasks


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        parents=[settings_flags()], description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dag", nargs="*", metavar="DAG[=FORM]", default=DAGS, help="with the form's values as JSON")
    args = parser.parse_args(argv)
    chosen = [given.partition("=")[::2] for given in args.dag]
    if wrong := [dag for dag, _ in chosen if dag not in DAGS]:
        parser.error(f"DAG is {wrong[0]!r}, allowed are {', '.join(DAGS)}")
    try:
        bench = Bench(Platform(settings_of(args)))
    except (SettingError, PlatformError) as e:
        print(f"dags_test: {e}", file=sys.stderr)
        return 2
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
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
