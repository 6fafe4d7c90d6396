"""### Copies the offline features of an interval to Feast's online store

`interval` → `materialize`

It copies the newest row of each key in the interval. A row that is older than the store's changes nothing. So the DAG
may run again, and beside the service that pushes features.
"""

from typing import Any

from airflow.sdk import dag, task

from dags import common
from dags.common import INTERVAL, arguments, flags, platform, run


@dag(**arguments(__doc__, INTERVAL, cron="15 0 * * *"))
def materialize_features() -> None:
    @task
    def interval() -> dict[str, int]:
        return common.interval()

    @task
    def materialize(when: dict[str, int]) -> dict[str, Any]:
        return run("features.store", "materialize", *flags(**platform("source", folder="features"), **when))

    materialize(interval())


materialize_features()
