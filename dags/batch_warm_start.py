"""### A new lineage from samples: trained, compared with what serves, and promoted if it may be

`choose` → `train` → `evaluate` → `promote`

- **choose**: the newest samples (or those of the form's interval), and the interval after them to judge on.
- **train**: one pass over them in a process of its own: a new lineage, whose base names where its data ends.
- **evaluate**: on the interval after, against the scores as served: paired, with an interval; all of it in MLflow.
- **promote**: the gate. It learns on to the head while the old one serves, then trainer and replicas take it over;
  what is refused ends skipped, with the reason. Begins by itself when `sample_examples` has written a sample.
"""

from typing import Any

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from dags.common import EXAMPLES, GATE, INTERVAL, MODEL, arguments, flags, gate, platform, run

CHOICE = INTERVAL | {
    "days": Param(1, type="integer", minimum=1, description="Train on so many samples: the newest, and those before."),
    "judge_end": Param(None, type=["null", "string"], format="date-time", description="Judge on what follows, up to."),
}
FORM = CHOICE | MODEL | GATE
FORM |= {
    "begin_from": Param("serving", enum=["serving", "none"], description="The serving lineage's base, or none."),
    "promote": Param(True, type="boolean", description="Ask the gate; without, the candidate stands in MLflow only."),
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
            raise AirflowSkipException("promote is off: the candidate waits in MLflow")
        return warm_start("promote", lineage=lineage, **platform("kafka"), **gate(params))

    chosen = choose()
    lineage = train(chosen)["lineage"]
    evaluate(chosen, lineage) >> promote(lineage)


batch_warm_start()
