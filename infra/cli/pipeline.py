"""`minutehand pipeline`: the slow half once, as a person runs it from Airflow's page, by Airflow's REST API.

sample_examples -> (its asset) batch_warm_start -> trainer and replicas take the new lineage up -> other scores
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

from common.extras import require
from delta_log.log import Log
from infra.airflow import services as airflow
from infra.airflow.rest import Airflow, AirflowError, Task
from infra.cli.flags import settings_flags, settings_of
from infra.layout import model_server, rest
from infra.metrics import metrics
from infra.platform import Platform, PlatformError
from infra.settings import Settings
from serving.signatures import RANKER
from streaming.sources.download import NoConnection

DAGS = {"sample_examples", "batch_warm_start"}
OTHERS = ("materialize_features", "publish_base", "watch_platform")
PARSED_WITHIN_S = 120.0
FOLLOWS_WITHIN_S = 60.0
TAKEN_UP_WITHIN_S = 180.0


class Served(NamedTuple):
    """The first replica's answer to one request, and the state that gave it."""

    lineage: str
    seq: int
    scores: dict[str, float]


def add_parser(commands: Any) -> None:
    p = commands.add_parser(
        "pipeline",
        parents=[settings_flags()],
        help="the slow half once: sample, validate, warm start, promote",
        description=(
            "On a running platform with Airflow: triggers sample_examples, waits for batch_warm_start, which its\n"
            "sample begins, and until trainer and model server have taken the promoted lineage up. Prints each\n"
            "step with its outcome, and the scores of one request before and after. Exit code 1 with the reason\n"
            "if a step fails."
        ),
        epilog="example: minutehand pipeline --name demo --day 2022-05-07",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--day", help="a day of event time (UTC); without: what is archived, but for its end, to judge on")
    p.add_argument("--begin", metavar="TIME", help="instead of a day: event time from, 2022-05-07T06:00:00Z")
    p.add_argument("--end", metavar="TIME", help="event time to, not included")
    p.add_argument("--timeout", type=float, default=900.0, metavar="S", help="of each DAG (default: %(default)g)")
    p.add_argument("--all", action="store_true", help=f"then {', '.join(OTHERS)} as well")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    require("airflow", "the slow half runs in Airflow")
    conf = {name: getattr(args, name) for name in ("day", "begin", "end") if getattr(args, name)}
    try:
        platform = Platform(settings_of(args))
        once(platform, conf, args.timeout)
        if args.all:
            the_others(session(platform), args.timeout)
    except (AirflowError, NoConnection, OSError) as e:  # the last two: the source cannot be read
        print(f"failed: {e}", flush=True)
        return 1
    return 0


def session(platform: Platform) -> Airflow:
    """Airflow of a running platform. Raises PlatformError where it has none."""
    if not platform.is_running():
        raise PlatformError(f"the platform is not running ({platform.folder}); start it with: minutehand up")
    return Airflow(platform.address("airflow"), airflow.USER, airflow.password(platform.layout.airflow))


def served(platform: Platform) -> Served:
    """Scores of the source's first impression from TF Serving's REST, and the state that the server says it holds."""
    from serving.client import Scorer, light
    from streaming.source import load

    light()
    source = load(Settings.from_dict(platform.facts()["settings"]).source)
    body = json.dumps({"instances": [next(iter(source.live())).features]}).encode()
    request = urllib.request.Request(f"{platform.address(rest(0))}/v1/models/{RANKER}:predict", body)
    with urllib.request.urlopen(request, timeout=30) as answer:
        (scores,) = json.load(answer)["predictions"]
    scorer = Scorer([platform.address(model_server(0))], RANKER, source.declaration)
    try:
        status = scorer.status()
    finally:
        scorer.close()
    seq = int(scores.pop("seq"))
    return Served(str(status["lineage"]), seq, {name: round(float(score), 4) for name, score in scores.items()})


def until(what: str, timeout_s: float, look: Callable[[], Any]) -> Any:
    """The first answer of `look` that is true. Raises AirflowError, with `what` did not come."""
    deadline = time.monotonic() + timeout_s
    while not (answer := look()):
        if time.monotonic() > deadline:
            raise AirflowError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.5)
    return answer


def tell(task: Task) -> None:
    facts = task.result if isinstance(task.result, dict) else {}
    short = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items() if not isinstance(v, (dict, list))}
    text = ", ".join(f"{k} {v}" for k, v in short.items() if len(str(v)) < 80)
    print(f"  {task.name:10} {task.state:8} {task.seconds:6.1f} s  {text}", flush=True)


def all_done(ask: Airflow, dag: str, run: str, timeout_s: float) -> dict[str, Task]:
    """The run's tasks, each told as it ends. Raises AirflowError with the words of the first that was not a success:
    a task that was skipped says why, and what can be done."""
    tasks = ask.wait(dag, run, timeout_s, tell)
    for task in tasks.values():
        if task.state != "success":
            raise AirflowError(f"{task.name} was {task.state}: {ask.last_words(dag, run, task.name)}")
    return tasks


def once(platform: Platform, conf: dict[str, str], timeout_s: float = 900.0) -> tuple[Served, Served]:
    """Runs all of it; the same request's scores before and after. Raises AirflowError with the step that failed."""
    ask = session(platform)
    print(f"Airflow at {ask.url}, as {airflow.USER}", flush=True)
    try:
        until("its DAGs", PARSED_WITHIN_S, lambda: ask.dags() >= DAGS)
    except AirflowError as e:
        raise AirflowError(f"{e}; {'; '.join(ask.import_errors()) or 'no import error is known'}") from None
    before = served(platform)
    print(f"served before: lineage {before.lineage}, delta {before.seq}, {before.scores}", flush=True)

    sample = ask.trigger("sample_examples", conf)
    print(f"sample_examples, run {sample}", flush=True)
    all_done(ask, "sample_examples", sample, timeout_s)
    start = until(
        "the run of batch_warm_start that the sample begins",
        FOLLOWS_WITHIN_S,
        lambda: ask.follower("batch_warm_start", sample),
    )
    print(f"batch_warm_start, run {start}", flush=True)
    tasks = all_done(ask, "batch_warm_start", start, timeout_s)
    lineage = str(tasks["train"].result["lineage"])

    log = Log(platform.layout.log())
    until(f"SERVING names {lineage}", TAKEN_UP_WITHIN_S, lambda: log.serving() == lineage)
    took = until(
        f"the online trainer goes on in {lineage}",
        TAKEN_UP_WITHIN_S,
        lambda: (
            log.seqs(lineage, "base") and "minutehand_trainer_seq" in (m := metrics(platform.address("trainer"))) and m
        ),
    )
    print(f"online trainer: lineage {lineage}, delta {took['minutehand_trainer_seq']:.0f}", flush=True)
    after = until(
        f"the model server serves {lineage}",
        TAKEN_UP_WITHIN_S,
        lambda: now if (now := served(platform)).lineage == lineage else None,
    )
    print(f"served after:  lineage {after.lineage}, delta {after.seq}, {after.scores}", flush=True)
    if after.scores == before.scores:
        raise AirflowError("the same request has the same scores before and after")
    print("done: validated, registered, promoted, taken up, other scores", flush=True)
    return before, after


def the_others(ask: Airflow, timeout_s: float) -> None:
    """The DAGs that nothing of `once` begins, one after the other, as their forms stand."""
    for dag in OTHERS:
        run = ask.trigger(dag, {})
        print(f"{dag}, run {run}", flush=True)
        all_done(ask, dag, run, timeout_s)
    print(f"green as well: {', '.join(OTHERS)}", flush=True)
