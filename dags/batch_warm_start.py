"""### Trains a lineage from samples, compares it with what was served, and promotes it if the gate accepts

`choose` → `train` → `evaluate` → `promote`

- **choose** takes the newest samples (or those of the form's interval), and the interval after them to judge on.
- **train** begins a new lineage by one pass over the samples, in a process of its own.
- **evaluate** compares its scores of the later interval with those that were served, and records the figures in MLflow.
- **promote** asks the gate. If it accepts, the lineage learns to the head while the old one serves. Then trainer
  and replicas take it over. If it refuses, the task is skipped. A new sample of `sample_examples` starts this DAG.
"""

from typing import Any

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.common import EXAMPLES, GATE, INTERVAL, MODEL, arguments, flags, gate, platform, run

CHOICE = INTERVAL | {
    "days": Param(1, type="integer", minimum=1, description="Train on so many samples: the newest ones."),
    "judge_end": Param(None, type=["null", "string"], format="date-time", description="The end of what to judge on."),
}
FORM = CHOICE | MODEL | GATE
FORM |= {
    "begin_from": Param("serving", enum=["serving", "none"], description="The served lineage's base, or none."),
    "promote": Param(True, type="boolean", description="Ask the gate; else the candidate stays in MLflow only."),
}


@dag(**arguments(__doc__, FORM, schedule=[EXAMPLES]))
def batch_warm_start() -> None:
    def warm_start(verb: str, **named: object) -> dict[str, Any]:
        return run("training.pipeline.warm_start", verb, *flags(**platform("source", "log", "mlflow"), **named))

    @task
    def choose(params: Any = None) -> dict[str, Any]:
        chosen = {name: params[name] for name in CHOICE}
        return run("training.pipeline.selection", *flags(**platform("samples", "archive"), **chosen))

    @task
    def train(chosen: dict[str, Any], params: Any = None) -> dict[str, Any]:
        return warm_start("train", **platform("archive", "model"), **chosen["train"], **{"from": params["begin_from"]})

    @task
    def evaluate(chosen: dict[str, Any], lineage: str) -> dict[str, Any]:
        return warm_start("evaluate", lineage=lineage, **platform("archive"), **chosen["judge"])

    @task
    def promote(lineage: str, params: Any = None) -> dict[str, Any]:
        if not params["promote"]:
            raise AirflowSkipException("promote is off: the candidate stays in MLflow")
        return warm_start("promote", lineage=lineage, **platform("kafka"), **gate(params))

    chosen = choose()
    lineage = train(chosen)["lineage"]
    evaluate(chosen, lineage) >> promote(lineage)


batch_warm_start()
