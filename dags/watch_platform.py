"""### Is the platform well?

`look`: freshness, lag, drift and calibration, from the processes' own metrics and the archive. It fails with a line
that names the figure, what was seen and what is allowed; all figures are in the task's log and its XCom.
"""

from typing import Any

from airflow.sdk import Param, dag, task

from dags.common import arguments, flags, run, where

FORM = {
    "minutes": Param(60, type="integer", minimum=1, description="Drift and calibration of so many newest minutes."),
    "calibration": Param(0.25, type="number", minimum=0, description="Allowed is a mean score / rate of 1 +- this."),
    "drift": Param(0.25, type="number", minimum=0, description="Allowed population stability index of the score."),
}


@dag(**arguments(__doc__, FORM, cron="*/10 * * * *"))
def watch_platform() -> None:
    @task(retries=0)
    def look(params: Any = None) -> dict[str, Any]:
        return run("infra.watch", *flags(platform=where(), **{name: params[name] for name in FORM}))

    look()


watch_platform()
