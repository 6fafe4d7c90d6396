"""### Checks whether the platform is well

`look` reads freshness, lag, drift and calibration from the processes' metrics and the archive. If a figure is not
allowed, it fails with a line that names the figure, what was seen and what is allowed. The task's log and its XCom have
all figures.
"""

from typing import Any

from airflow.sdk import Param, dag, task

from dags.common import arguments, flags, platform_file, run

FORM = {
    "minutes": Param(60, type="integer", minimum=1, description="Judge drift and calibration of so many new minutes."),
    "calibration": Param(0.25, type="number", minimum=0, description="A mean score / rate of 1 +- this is allowed."),
    "drift": Param(0.25, type="number", minimum=0, description="The highest stability index of the score allowed."),
}


@dag(**arguments(__doc__, FORM, cron="*/10 * * * *"))
def watch_platform() -> None:
    @task(retries=0)
    def look(params: Any = None) -> dict[str, Any]:
        return run("infra.watch", *flags(platform=platform_file(), **{name: params[name] for name in FORM}))

    look()


watch_platform()
