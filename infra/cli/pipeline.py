"""`minutehand pipeline`: runs the slow half once by Airflow's REST API, as a person does on Airflow's page.

sample_examples -> (its asset) batch_warm_start -> trainer and replicas take over the new lineage -> other scores
"""

from __future__ import annotations

import argparse
import json
from typing import Any, NamedTuple

from common import process
from common.errors import InputError
from common.extras import require
from delta_log.log import Log
from infra.airflow import services as airflow
from infra.airflow.rest import Airflow, AirflowError, Task
from infra.cli.command import add, settings_of
from infra.http_client import fetch, metrics
from infra.layout import model_server, rest
from infra.platform import Platform, PlatformError
from infra.settings import Settings
from serving.signatures import RANKER
from streaming.sources.download import NoConnection

DAGS = {"sample_examples", "batch_warm_start"}
OTHERS = ("materialize_features", "publish_base", "watch_platform")
PARSED_WITHIN_S = 120.0
FOLLOWS_WITHIN_S = 60.0
TAKES_OVER_WITHIN_S = 180.0


class Served(NamedTuple):
    """The first replica's scores of one request, and the lineage and delta that gave them."""

    lineage: str
    seq: int
    scores: dict[str, float]


def add_parser(commands: Any) -> None:
    p = add(
        commands,
        "pipeline",
        run,
        "the slow half once: sample, validate, warm start, promote",
        "Needs a running platform with Airflow. Triggers sample_examples and waits for batch_warm_start, which the\n"
        "sample begins. Then waits until trainer and model server have taken over the promoted lineage. Prints each\n"
        "step with its outcome, and the scores of one request before and after. Exit code 1 with the reason if a\n"
        "step fails.",
        "minutehand pipeline --name demo --day 2022-05-07",
    )
    p.add_argument("--day", help="a day of event time (UTC) (default: what is archived, but for the end, to judge on)")
    p.add_argument("--begin", metavar="TIME", help="instead of a day: event time from, 2022-05-07T06:00:00Z")
    p.add_argument("--end", metavar="TIME", help="event time to, not included")
    text = "of the gate: the candidate's AUC may be lower by less than X (default: the setting gate_tolerance)"
    p.add_argument("--tolerance", type=process.at_least(0.0), metavar="X", help=text)
    text = "of the gate: mean score / rate may be from 1 / X to X (default: the setting gate_calibration)"
    p.add_argument("--calibration", type=process.at_least(1.0), metavar="X", help=text)
    p.add_argument("--timeout", type=float, default=900.0, metavar="S", help="of each DAG (default: %(default)g)")
    p.add_argument("--all", action="store_true", help=f"then {', '.join(OTHERS)} as well")


def run(args: argparse.Namespace) -> int:
    require("airflow", "the slow half runs in Airflow")
    names = ("day", "begin", "end", "tolerance", "calibration")
    conf = {name: value for name in names if (value := getattr(args, name)) is not None}
    platform = Platform(settings_of(args))
    platform.require_running()
    try:
        once(platform, conf, args.timeout)
        if args.all:
            the_others(session(platform), args.timeout)
    except (InputError, NoConnection, OSError) as e:  # the last two: the source cannot be read
        print(f"failed: {e}", flush=True)
        return process.FAILED
    return process.DONE


def session(platform: Platform) -> Airflow:
    """A session with the Airflow of a running platform. Raises PlatformError if it has none."""
    platform.require_running()
    return Airflow(platform.address("airflow"), airflow.USER, airflow.password(platform.layout.airflow))


def served(platform: Platform) -> Served:
    """Asks the model server by REST for scores of the source's first impression, and for its lineage."""
    from serving.client import Scorer, light
    from streaming.source import load

    light()
    source = load(Settings.from_dict(platform.facts()["settings"]).source)
    first = next(iter(source.live())).features
    body = {"instances": [{f.name: first[f.name] for f in source.declaration.served if f.name in first}]}
    (scores,) = json.loads(fetch(f"{platform.address(rest(0))}/v1/models/{RANKER}:predict", body))["predictions"]
    scorer = Scorer([platform.address(model_server(0))], RANKER, source.declaration)
    try:
        status = scorer.status()
    finally:
        scorer.close()
    seq = int(scores.pop("seq"))
    return Served(str(status["lineage"]), seq, {name: round(float(score), 4) for name, score in scores.items()})


def print_task(task: Task) -> None:
    """Prints a task with the short values that it returned."""
    facts = task.result if isinstance(task.result, dict) else {}
    short = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items() if not isinstance(v, (dict, list))}
    text = ", ".join(f"{k} {v}" for k, v in short.items() if len(str(v)) < 80)
    print(f"  {task.name:10} {task.state:8} {task.seconds:6.1f} s  {text}", flush=True)


def succeed(client: Airflow, dag: str, run: str, timeout_s: float) -> dict[str, Task]:
    """Waits for a run and prints its tasks. Raises AirflowError with the reason of a task that failed or is skipped."""
    tasks = client.wait(dag, run, timeout_s, print_task)
    for task in tasks.values():
        if task.state != "success":
            raise AirflowError(f"{task.name} was {task.state}: {client.outcome(dag, run, task.name)}")
    return tasks


def once(platform: Platform, conf: dict[str, Any], timeout_s: float = 900.0) -> tuple[Served, Served]:
    """Runs the slow half. Returns one request's scores before and after.

    Raises AirflowError or PlatformError with the step that failed.
    """
    client = session(platform)
    print(f"Airflow at {client.url}, as {airflow.USER}", flush=True)
    try:
        platform.wait(lambda: client.dags() >= DAGS, PARSED_WITHIN_S, "Airflow has parsed the DAGs")
    except PlatformError as e:
        raise AirflowError(f"{e}; {'; '.join(client.import_errors()) or 'Airflow reports no import error'}") from None
    before = served(platform)
    print(f"served before: lineage {before.lineage}, delta {before.seq}, {before.scores}", flush=True)

    sample = client.trigger("sample_examples", conf)
    print(f"sample_examples, run {sample}", flush=True)
    succeed(client, "sample_examples", sample, timeout_s)
    follower = platform.wait(
        lambda: client.follower("batch_warm_start", sample), FOLLOWS_WITHIN_S, "the sample begins batch_warm_start"
    )
    print(f"batch_warm_start, run {follower}", flush=True)
    lineage = str(succeed(client, "batch_warm_start", follower, timeout_s)["train"].result["lineage"])

    log, trainer = Log(platform.layout.log()), platform.address("trainer")
    platform.wait(lambda: log.serving() == lineage, TAKES_OVER_WITHIN_S, f"SERVING names {lineage}")
    figures = platform.wait(
        lambda: log.seqs(lineage, "base") and "minutehand_trainer_seq" in (m := metrics(trainer)) and m,
        TAKES_OVER_WITHIN_S,
        f"the online trainer continues {lineage}",
    )
    print(f"online trainer: lineage {lineage}, delta {figures['minutehand_trainer_seq']:.0f}", flush=True)
    after = platform.wait(
        lambda: now if (now := served(platform)).lineage == lineage else None,
        TAKES_OVER_WITHIN_S,
        f"the model server serves {lineage}",
    )
    print(f"served after:  lineage {after.lineage}, delta {after.seq}, {after.scores}", flush=True)
    if after.scores == before.scores:
        raise AirflowError("the same request has the same scores before and after")
    print("done: validated, registered, promoted, taken over, other scores", flush=True)
    return before, after


def the_others(client: Airflow, timeout_s: float) -> None:
    """Runs the other DAGs, one after the other, with the defaults of their forms."""
    for dag in OTHERS:
        run = client.trigger(dag, {})
        print(f"{dag}, run {run}", flush=True)
        succeed(client, dag, run, timeout_s)
    print(f"green as well: {', '.join(OTHERS)}", flush=True)
