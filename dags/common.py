"""What the DAGs share: where the platform is, a run's interval, and a child process whose log is the task's.

Every task is a `python -m ...` of the library: it can be run without Airflow, and TensorFlow never enters Airflow.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, CronDataIntervalTimetable, Param, get_current_context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

log = logging.getLogger("airflow.task")

EXAMPLES = Asset("examples", uri="minutehand://samples/examples")
WRONG, REFUSED = 2, 3
"""Exit codes of a child: the input is wrong, so that trying again is of no use; a gate said no."""

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \S+ ")
"""What our commands put before a line: the task's log has its own time."""

INTERVAL = {
    "day": Param(None, type=["null", "string"], format="date", description="A day of event time (UTC), 2022-05-07."),
    "begin": Param(None, type=["null", "string"], format="date-time", description="Instead of a day: event time from."),
    "end": Param(None, type=["null", "string"], format="date-time", description="Event time to (not included)."),
}

MODEL = {
    "model": Param(None, type=["null", "string"], description="The model, by its served name; without: the first one.")
}

NUMBER: dict[str, Any] = {"default": None, "type": ["null", "number"]}
GATE = {  # what is left out: the settings gate_tolerance and gate_calibration (minutehand.toml)
    "tolerance": Param(**NUMBER, minimum=0, description="Allowed is an AUC lower by less than this."),
    "calibration": Param(**NUMBER, minimum=1, description="Allowed is a mean score / rate to this, from 1 / this."),
}


def arguments(doc: str, form: dict[str, Param] | None = None, cron: str = "0 0 * * *", schedule: Any = None) -> Any:
    """What each @dag is made with. By the clock only where event time is the wall's: MINUTEHAND_DAILY=true."""
    live = os.environ.get("MINUTEHAND_DAILY", "").lower() in ("1", "true", "on")
    return {
        "schedule": schedule or (CronDataIntervalTimetable(cron, timezone="UTC") if live else None),
        "start_date": datetime(2022, 1, 1, tzinfo=UTC),
        "catchup": False,
        "max_active_runs": 1,
        "doc_md": doc,
        "params": form or {},
        "tags": ["minutehand"],
        "default_args": {
            "owner": "minutehand",
            "retries": 1,
            "retry_delay": timedelta(seconds=10),
            "execution_timeout": timedelta(hours=2),
        },
    }


def where() -> str:
    """The path of platform.json, which the platform gives to its Airflow."""
    given = os.environ.get("MINUTEHAND_PLATFORM", "")
    if not Path(given).is_file():
        raise AirflowFailException(f"MINUTEHAND_PLATFORM is {given!r}; allowed is the path of a platform.json")
    return given


def facts() -> dict[str, Any]:
    """settings, addresses and folders of the platform this Airflow belongs to."""
    found: dict[str, Any] = json.loads(Path(where()).read_text())
    return found


def platform(*names: str, **renamed: str) -> dict[str, Any]:
    """Folders, addresses and settings of these names, as flags: `to="samples"` is --to <that folder>.

    `log` and `model` are those of the run's model: the form's `model`, else the first one of the platform.
    """
    values = facts()
    models = values["models"]
    name = get_current_context()["params"].get("model") or next(iter(models))
    if name not in models:
        raise AirflowFailException(f"model is {name!r}; allowed are {', '.join(models)}")
    values = values["settings"] | {"mlflow": "none"} | values["addresses"] | values["folders"] | models[name]
    return {name: values[name] for name in names} | {flag: values[name] for flag, name in renamed.items()}


def gate(params: Any) -> dict[str, Any]:
    """The gate's figures: the form's, and the platform's settings for what it leaves out."""
    settings = platform(**{name: f"gate_{name}" for name in GATE})
    return settings | {name: params[name] for name in GATE if params[name] is not None}


def docs() -> dict[str, str]:
    """Where Data Docs go, and where a browser finds them."""
    return platform(docs="data_docs", docs_at="data-docs")


def replicas() -> list[str]:
    """FOLDER=HOST:PORT of the run's model in each model server."""
    values = facts()
    name = get_current_context()["params"].get("model") or next(iter(values["models"]))
    count, folder = int(values["settings"]["replicas"]), values["folders"]["models"]
    return [f"{folder}/replica-{i}/{name}={values['addresses'][f'model-server-{i}']}" for i in range(count)]


def flags(**given: Any) -> list[str]:
    """--name value of each that is given; of a list, one a value."""
    words = []
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            words += [] if one is None else [f"--{name.replace('_', '-')}", str(one)]
    return words


def interval() -> dict[str, int]:
    """begin and end of this run, ms of event time: its params, its data interval, or what the archive offers."""
    from common.interval import Interval
    from streaming.archive.archive import Archive

    context = get_current_context()
    given = {name: context["params"].get(name) or "" for name in INTERVAL}
    start, stop = context.get("data_interval_start"), context.get("data_interval_end")
    try:
        if any(given.values()):
            found, why = Interval.of(**given), "as given"
        elif start and stop and start < stop:
            found, why = Interval.of(begin=start.isoformat(), end=stop.isoformat()), "the run's data interval"
        else:
            archive = Archive(facts()["folders"]["archive"])
            since, until = archive.since_ms("examples"), archive.until_ms("examples")
            if until <= since:
                raise ValueError("neither a day nor begin and end are given, and nothing is archived yet")
            found, why = Interval.within(since, until + 1), "nothing was given: from what is archived"
    except ValueError as e:
        raise AirflowFailException(str(e)) from None
    log.info("interval %s: %s", found, why)
    return {"begin": found.begin_ms, "end": found.end_ms}


def run(module: str, *args: str) -> dict[str, Any]:
    """Runs `python -m module args` with its log streamed to the task's; the JSON object it printed.

    Fails with the last line it logged; without another try where that is of no use. Skips where a gate refused.
    """
    from infra.supervise.processes import die_with_parent

    command = [sys.executable, "-m", module, *args]
    log.info("%s", " ".join(command[1:]))
    last = ""
    with tempfile.TemporaryFile("w+") as answer:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
        try:
            assert child.stderr is not None
            for line in child.stderr:
                log.info("%s", line.rstrip())
                last = STAMP.sub("", line.strip()) or last
            code = child.wait()
        finally:
            child.terminate()  # nothing, once it has ended
            child.wait()
        answer.seek(0)
        said = answer.read().strip()
    if code == REFUSED:
        raise AirflowSkipException(last)
    if code == WRONG:
        raise AirflowFailException(last)
    if code:
        raise RuntimeError(f"{module} ended with exit code {code}: {last or 'it said nothing'}")
    found: dict[str, Any] = json.loads(said) if said else {}
    return found
