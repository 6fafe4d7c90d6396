"""### Checks whether the platform is well

`look` reads freshness, lag, dead letters, late events, drift and calibration. They come from the processes' metrics,
from Kafka and from the archive. If a figure is not allowed, it fails with a line that names the figure, what was seen
and what is allowed. The task's log and its XCom have all figures.
"""

from typing import Any

from airflow.sdk import Param, dag, task

from dags.common import arguments, flags, platform_file, run

FORM = {
    "minutes": Param(60, type="integer", minimum=1, description="Judge drift and calibration of so many new minutes."),
    "calibration": Param(0.25, type="number", minimum=0, description="A mean score / rate of 1 +- this is allowed."),
    "drift": Param(0.25, type="number", minimum=0, description="The highest stability index of the score allowed."),
    "dead": Param(0, type="integer", minimum=0, description="So many dead letters are allowed."),
    "late": Param(0.1, type="number", minimum=0, description="This share of events may come too late."),
}


@dag(**arguments(__doc__, FORM, cron="*/10 * * * *"))
def watch_platform() -> None:
    @task(retries=0)
    def look(params: Any = None) -> dict[str, Any]:
        return run("infra.watch", *flags(platform=platform_file(), **{name: params[name] for name in FORM}))

    look()


watch_platform()
