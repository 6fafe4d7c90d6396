"""### Samples an interval of the archive to train on

`interval` → `validate` → `features` → `sample`

- **validate** judges the interval's impressions and examples by their contracts (Great Expectations). If one is broken,
  the task fails, and its last line names the expectation, the column, what was seen and what is allowed.
- **features** compares the logged features with what Feast held when they were read (a join on arrival time).
- **sample** writes positives and some negatives to Parquet, the same bytes each time. Then `batch_warm_start` begins.
  Its gate takes this form's `tolerance` and `calibration`, if they are given.

Trigger it for a day with the form. An interval without examples is skipped. One that is not archived fails.
"""

from typing import Any

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags import common
from dags.common import EXAMPLES, GATE, INTERVAL, arguments, docs, flags, gate_of, platform, run

SHARE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
PILOT = "served, or another model: a version's alias (champion) or number in MLflow, or a base's folder."
SAMPLING = {
    "method": Param("pilot", enum=["pilot", "uniform"], description="Keep negatives by a pilot's score, or all alike."),
    "pilot": Param("served", type="string", minLength=1, description=PILOT),
    "keep": Param(0.5, **SHARE, description="The share of the negatives to keep."),
    "floor": Param(0.05, **SHARE, description="A pilot keeps each negative with at least this probability."),
}


@dag(**arguments(__doc__, INTERVAL | SAMPLING | GATE))
def sample_examples() -> None:
    @task
    def interval() -> dict[str, int]:
        return common.interval()

    @task
    def validate(when: dict[str, int]) -> dict[str, Any]:
        return run("training.pipeline.validation", *flags(**platform("source", "archive", "samples"), **docs(), **when))

    @task
    def features(when: dict[str, int]) -> dict[str, Any]:
        folders = platform("source", "archive", "features")
        return run("training.pipeline.feature_check", *flags(**folders, **docs(), **when))

    @task(outlets=[EXAMPLES])
    def sample(when: dict[str, int], params: Any = None, outlet_events: Any = None) -> dict[str, Any]:
        chosen = platform("source", "archive", "log", "mlflow", to="samples") | {n: params[n] for n in SAMPLING}
        facts = run("training.pipeline.sampling", *flags(**when, **chosen))
        if not facts["rows"]:
            raise AirflowSkipException("the interval has no examples: nothing to train on")
        outlet_events[EXAMPLES].extra = facts | ({"gate": asked} if (asked := gate_of(params)) else {})
        return facts

    validate(when := interval()) >> features(when) >> sample(when)


sample_examples()
