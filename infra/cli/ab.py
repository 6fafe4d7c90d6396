"""`minutehand ab`: compares the arms of an experiment; see docs/experiments.md."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from common.interval import milliseconds
from infra.cli.command import Justify, add, print_table, settings_of
from infra.layout import Layout
from infra.platform import Platform, PlatformError
from infra.settings import Settings
from serving.experiment.results import Results, results
from streaming.archive.archive import Archive
from streaming.source import load


def add_parser(commands: Any) -> None:
    p = add(
        commands,
        "ab",
        run,
        "compare the arms of an experiment",
        "Show what the users of each arm did, and how an arm's rate differs from that of the first arm, with an\n"
        "interval that holds however often you look. The platform may be running or not; it needs an archive.\n"
        "The experiment is the setting arms, such as served:50,frozen:50.",
        "minutehand ab --set arms=served:50,frozen:50",
    )
    p.add_argument("--begin", metavar="TIME", help="event time from (default: the first impression of another arm)")
    p.add_argument("--end", metavar="TIME", help="event time to (default: up to the last closed window)")
    p.add_argument("--json", action="store_true", help="all figures as one JSON object")
    p.add_argument("--record", action="store_true", help="keep the figures in MLflow, a run an experiment")


def run(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    settings = _as_started(platform)
    times = (milliseconds(name, text) if (text := getattr(args, name)) else None for name in ("begin", "end"))
    found = results(Archive(Layout(settings).archive), load(settings.source).declaration, settings.experiment, *times)
    if args.record:
        _record(platform, found)
    if args.json:
        print(json.dumps(found.as_json()))
    else:
        _print(found)
    return 0


def _as_started(platform: Platform) -> Settings:
    """The settings with the arms that the platform was started with, unless somebody gives others."""
    facts = platform.facts().get("settings", {})
    settings = platform.settings
    return settings if "arms" in settings.given or "arms" not in facts else settings.with_(arms=facts["arms"])


def _print(found: Results) -> None:
    tasks = list(found.rates[found.arms[0].name])
    columns: dict[str, Justify] = {"arm": "left", "users": "right", "impressions": "right"}
    columns |= dict.fromkeys((f"{task} / impression" for task in tasks), "right")
    print_table(
        columns,
        (
            [a.name, f"{found.users[a.name]:,}", f"{found.impressions[a.name]:,}"]
            + [f"{found.rates[a.name][task]:.4f}" for task in tasks]
            for a in found.arms
        ),
        f"impressions of {found.interval}",
    )
    for arm, of_task in found.differences.items():
        for task, d in of_task.items():
            says = "no difference is shown yet" if not (d.low > 0 or d.high < 0) else "they differ"
            print(
                f"{task}: {arm} less {found.arms[0].name} is {d.difference:+.4f}, 95 % at every look:"
                f" {d.low:+.4f} to {d.high:+.4f}; {says}"
            )
    for warning in found.warnings:
        print(f"warning: {warning}")


def _record(platform: Platform, found: Results) -> None:
    """Logs the figures as a step of the experiment's run: the step is the minutes since it began."""
    from training.record import registry

    if not (url := platform.facts().get("addresses", {}).get("mlflow")):
        raise PlatformError("--record needs MLflow; allowed is a platform that runs with mlflow = true")
    client = registry.client_of(url)
    arms = ",".join(f"{arm.name}:{100 * arm.share:g}" for arm in found.arms)
    run_id = registry.run_of(client, platform.settings.source, f"{arms} from {found.interval.begin_ms}", "experiment")
    step = (found.interval.end_ms - found.interval.begin_ms) // 60_000
    for name, value in _metrics(found).items():
        client.log_metric(run_id, name, value, time.time_ns() // 1_000_000, step)


def _metrics(found: Results) -> dict[str, float]:
    values: dict[str, float | None] = {"mismatch_p": found.mismatch_p}
    plain = found.as_json()
    for arm in plain["arms"]:
        values |= {f"{arm['arm']}.users": arm["users"], f"{arm['arm']}.impressions": arm["impressions"]}
        values |= {f"{arm['arm']}.{task}": rate for task, rate in arm["rates"].items()}
    for arm, of_task in plain["differences"].items():
        values |= {f"{arm}.{task}.{name}": v for task, d in of_task.items() for name, v in d.items()}
    return {name: float(value) for name, value in values.items() if value is not None}
