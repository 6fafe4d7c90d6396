"""### Publishes a new base of the served lineage to the model servers

`check` → `publish`

- **check** judges the lineage's deltas by their manifests: there is no gap, and time moves on.
- **publish** makes base and deltas one new version in each model server, and waits until that is AVAILABLE and at the
  log's head. Otherwise it puts the old version back, and the task fails with the reason.
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
