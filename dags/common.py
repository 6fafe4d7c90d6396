"""Helpers of the DAGs: the platform's addresses, a run's interval, and a child process whose log is the task's.

Every task is a `python -m ...` of the library. So it runs without Airflow, and TensorFlow never enters Airflow.
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

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \S+ ")
"""The time and logger that our commands put before a line of the log."""

INTERVAL = {
    "day": Param(None, type=["null", "string"], format="date", description="A day of event time (UTC), as 2022-05-07."),
    "begin": Param(None, type=["null", "string"], format="date-time", description="Or the begin, in event time (UTC)."),
    "end": Param(None, type=["null", "string"], format="date-time", description="The end, which is not included."),
}

MODEL = {
    "model": Param(None, type=["null", "string"], description="The model's served name (default: the first model).")
}

NUMBER: dict[str, Any] = {"default": None, "type": ["null", "number"]}
GATE = {  # by default the settings gate_tolerance and gate_calibration (minutehand.toml)
    "tolerance": Param(**NUMBER, minimum=0, description="The AUC may be lower by less than this."),
    "calibration": Param(**NUMBER, minimum=1, description="Mean score / rate may be from 1 / this to this."),
}


def arguments(doc: str, form: dict[str, Param] | None = None, cron: str = "0 0 * * *", schedule: Any = None) -> Any:
    """The arguments of each @dag. It runs by the clock if event time is wall time (MINUTEHAND_DAILY=true)."""
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


def platform_file() -> str:
    """The path of platform.json, which the platform sets for its Airflow."""
    path = os.environ.get("MINUTEHAND_PLATFORM", "")
    if not Path(path).is_file():
        raise AirflowFailException(f"MINUTEHAND_PLATFORM is {path!r}; allowed is the path of a platform.json")
    return path


def facts() -> dict[str, Any]:
    """The settings, addresses and folders of the platform that this Airflow belongs to."""
    content: dict[str, Any] = json.loads(Path(platform_file()).read_text())
    return content


def platform(*names: str, **renamed: str) -> dict[str, Any]:
    """The folders, addresses and settings of these names, for `flags`. `to="samples"` is --to <that folder>.

    `log` and `model` are those of the run's model: the form's `model`, else the platform's first one.
    """
    values = facts()
    models = values["models"]
    name = get_current_context()["params"].get("model") or next(iter(models))
    if name not in models:
        raise AirflowFailException(f"model is {name!r}; allowed are {', '.join(models)}")
    values = values["settings"] | {"mlflow": "none"} | values["addresses"] | values["folders"] | models[name]
    return {name: values[name] for name in names} | {flag: values[name] for flag, name in renamed.items()}


def gate_of(params: Any) -> dict[str, Any]:
    """The gate's figures that a form has."""
    return {name: params[name] for name in GATE if params[name] is not None}


def gate(params: Any) -> dict[str, Any]:
    """The gate's figures: the form's, else those of the sample that began this run, else the platform's settings."""
    figures = platform(**{name: f"gate_{name}" for name in GATE})
    for events in (get_current_context().get("triggering_asset_events") or {}).values():
        for event in events:
            figures |= (event.extra or {}).get("gate", {})
    return figures | gate_of(params)


def docs() -> dict[str, str]:
    """The folder of Data Docs, and its address for a browser."""
    return platform(docs="data_docs", docs_at="data-docs")


def replicas() -> list[str]:
    """FOLDER=HOST:PORT of the run's model, for each model server."""
    values = facts()
    name = get_current_context()["params"].get("model") or next(iter(values["models"]))
    count, folder = int(values["settings"]["replicas"]), values["folders"]["models"]
    return [f"{folder}/replica-{i}/{name}={values['addresses'][f'model-server-{i}']}" for i in range(count)]


def flags(**values: Any) -> list[str]:
    """--name value for each value that is not None, and for each value of a list."""
    words = []
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            words += [] if one is None else [f"--{name.replace('_', '-')}", str(one)]
    return words


def interval() -> dict[str, int]:
    """The begin and end of this run, ms of event time: by its form, its data interval, or what is archived."""
    from common.interval import Interval
    from streaming.archive.archive import Archive

    context = get_current_context()
    form = {name: context["params"].get(name) or "" for name in INTERVAL}
    start, stop = context.get("data_interval_start"), context.get("data_interval_end")
    try:
        if any(form.values()):
            chosen, reason = Interval.of(**form), "the form's"
        elif start and stop and start < stop:
            chosen, reason = Interval.of(begin=start.isoformat(), end=stop.isoformat()), "the run's data interval"
        else:
            archive = Archive(facts()["folders"]["archive"])
            since, until = archive.since_ms("examples"), archive.until_ms("examples")
            if until <= since:
                raise ValueError("the form has neither a day nor begin and end, and nothing is archived yet")
            chosen, reason = Interval.within(since, until + 1), "the form has none: of what is archived"
    except ValueError as e:
        raise AirflowFailException(str(e)) from None
    log.info("interval %s: %s", chosen, reason)
    return {"begin": chosen.begin_ms, "end": chosen.end_ms}


def run(module: str, *args: str) -> dict[str, Any]:
    """Runs `python -m module args`, streams its log to the task's, and returns the JSON object that it printed.

    The task fails with the last line that the command logged, without another try if the input is wrong. If a gate
    refused, the task is skipped.
    """
    from common.process import REFUSED, WRONG_INPUT
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
            child.terminate()  # does nothing if it has ended
            child.wait()
        answer.seek(0)
        text = answer.read().strip()
    if code == REFUSED:
        raise AirflowSkipException(last)
    if code == WRONG_INPUT:
        raise AirflowFailException(last)
    if code:
        raise RuntimeError(f"{module} ended with exit code {code}: {last or 'it logged nothing'}")
    result: dict[str, Any] = json.loads(text) if text else {}
    return result
