"""### The lineage that serves gets a new base in the model servers

`check` → `publish`

- **check**: what the delta log says of its deltas keeps its contract (no gap, time moves on).
- **publish**: base and deltas become one new version in each model server, watched until it is AVAILABLE and has caught
  up with the log; if it does not, the old version is put back and the task fails with the reason.
"""

from typing import Any

from airflow.sdk import Param, dag, task

from dags.common import MODEL, arguments, docs, flags, platform, replicas, run

FORM = MODEL | {
    "timeout_s": Param(300, type="integer", minimum=1, description="Seconds until the old version is put back.")
}


@dag(**arguments(__doc__, FORM, cron="0 4 * * *"))
def publish_base() -> None:
    @task
    def check() -> dict[str, Any]:
        return run("training.pipeline.delta_check", *flags(**platform("log"), **docs()))

    @task
    def publish(params: Any = None) -> dict[str, Any]:
        return run(
            "serving.publish",
            *flags(**platform("log"), replica=replicas(), timeout_s=params["timeout_s"], model=params["model"]),
        )

    check() >> publish()


publish_base()
