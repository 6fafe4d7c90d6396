"""### The lineage that serves gets a new base in the model servers

`check` → `publish`

- **check**: what the delta log says of its deltas keeps its contract (no gap, time moves on).
- **publish**: base and deltas become one new version in each model server, watched until it is AVAILABLE and has caught
  up with the log; if it does not, the old version is put back and the task fails with the reason.
"""

from typing import Any

from airflow.sdk import dag, task

from dags.common import arguments, flags, platform, replicas, run


@dag(**arguments(__doc__, cron="0 4 * * *"))
def publish_base() -> None:
    @task
    def check() -> dict[str, Any]:
        return run("training.delta_check", *flags(**platform("log", docs="data_docs")))

    @task
    def publish() -> dict[str, Any]:
        return run("serving.publish", *flags(**platform("log"), replica=replicas()))

    check() >> publish()


publish_base()
