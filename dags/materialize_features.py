"""### The offline features of an interval go into Feast's online store

`interval` → `materialize`

The newest row of each key of the interval; a row that is older than what the store holds changes nothing, so that it
may run again, and beside the service that pushes.
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
