"""`minutehand demo`: runs the whole loop on one source, with a live screen, and writes a report.

base from the days before -> platform up -> the last days replayed against the served and the frozen model -> report
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markdown import Markdown

from common.disk import hold
from common.errors import InputError
from delta_log.files import read_rows
from delta_log.log import Log
from delta_log.manifest import Manifest
from infra import services
from infra.airflow import services as airflow
from infra.cli.command import add
from infra.layout import model_server, rest, sync
from infra.platform import Platform, PlatformError
from infra.replay.forgetting import forgetting
from infra.replay.live import read_lines
from infra.replay.plan import Plan
from infra.replay.report import Pairs, Sent, build, joined, markdown
from infra.replay.run import prepare, replay
from infra.settings import DURATION, PROJECT, SettingError, Settings, load, seconds
from infra.tail import Refused
from serving.signatures import RANKER
from streaming.declaration import Declaration
from streaming.source import load as load_source

AUTO = "auto"


def add_parser(commands: Any) -> None:
    p = add(
        commands,
        "demo",
        run,
        "the whole loop on a source, with a report",
        "Empties var/demo, learns a base from the source's history, starts the platform, replays the rest against\n"
        "the served and a frozen copy of the base, and reports both. In a terminal it then stays up until Ctrl-C.\n"
        "If sync_every is not set, a delta is 10 minutes of event time, within 1 s and 60 s of wall time.",
        "minutehand demo --source simulator --set sync_every=1s --wall 2m",
    )
    p.add_argument(
        "--source",
        default=AUTO,
        help="kuairand, simulator, a module or a .py file; auto: KuaiRand if it is cached or can be fetched, else the"
        " simulator (default: %(default)s)",
    )
    p.add_argument("--wall", default="7m", help="how long the replay takes if the loop keeps up (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the model's start and the report's bootstrap (default: 0)")


def run(args: argparse.Namespace) -> int:
    console = Console()
    settings = demo_settings(args)
    wall_s = wall_of(args.wall)
    settings = settings.with_(source=args.source if args.source != AUTO else choose(console))
    with alone(Platform(settings)) as platform, platform:
        began = time.monotonic()
        plan = Plan.of(load_source(settings.source), wall_s)
        if "sync_every" not in settings.given:
            platform.settings = settings = settings.with_(sync_every=f"{plan.sync_every_s:g}s")
        console.print(plan.text(settings.sync_every), soft_wrap=True, highlight=False)
        base = prepare(platform, args.seed, console)
        items = items_of(base, load_source(settings.source).declaration)
        with console.status("starting Kafka, the join, MLflow, trainer, model server and sync"):
            platform.start(only=services.minute_loop(settings))
        setup_s = time.monotonic() - began
        console.print(f"platform up after {setup_s:.0f} s; logs in {relative(platform.folder / 'logs')}")
        replay(platform, wall_s, console)
        wall_s = time.monotonic() - began - setup_s
        figures: dict[str, Any] = {"seed": args.seed, "wall_s": round(wall_s, 1), "setup_s": round(setup_s, 1)}
        replayed = Replayed.of(platform, base.lineage)
        addresses = [platform.address(model_server(i)) for i in range(settings.replicas)]
        figures |= plan.figures(settings.sync_every)
        figures["forgetting"] = forgetting(plan.last_day, addresses, replayed.declaration, args.seed)
        report = finish(platform, base, items, replayed, figures)
        files = write(platform, replayed, report)
        text = files[0].read_text()
        console.print(Markdown(text) if console.is_terminal else text, soft_wrap=not console.is_terminal)
        console.print("written: " + ", ".join(relative(f) for f in files), soft_wrap=True)
        if console.is_terminal and sys.stdin.isatty():
            slow_half(platform, console)
            goodbye(platform, console)
    return 0 if report["pairs"]["lost"] == report["pairs"]["double"] == 0 and report["digests_equal"] else 1


@contextlib.contextmanager
def alone(platform: Platform) -> Iterator[Platform]:
    """The platform, for this demo alone: it will be emptied. Raises InputError if anybody uses its folder."""
    name = platform.folder.name
    with hold(platform.folder.with_name(f"{name}.lock"), "another demo runs here; end it, or give this one a --name"):
        if platform.is_running():
            raise InputError(
                f"{platform.folder} is in use and would be emptied; end it with: minutehand down --name {name}"
            )
        yield platform


def demo_settings(args: argparse.Namespace) -> Settings:
    settings = load(
        args.settings, [f"name={args.name or 'demo'}", "digest=true", "max_disorder=1s", *args.set, "event_time=replay"]
    )
    if settings.features_from == "feast" and not settings.feast:
        raise SettingError("features_from is 'feast' and feast is false; allowed is source, or feast = true")
    services.require_extras(settings)
    return settings


def wall_of(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (wall_s := seconds(text)) >= 1:
            return wall_s
    raise SettingError(f"wall is {text!r}; allowed is {DURATION}, at least 1s")


def relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def choose(console: Console) -> str:
    """Returns kuairand if its data are cached or can be fetched, else simulator, and prints which it is."""
    from streaming.sources.download import NoConnection
    from streaming.sources.kuairand_files import folder

    try:
        console.print(f"source: kuairand (from {folder()})", highlight=False)
        return "kuairand"
    except NoConnection as e:
        console.print(f"source: simulator ({e})", highlight=False, soft_wrap=True)
        return "simulator"
    except (InputError, ValueError, OSError) as e:
        raise SettingError(f"source is kuairand, whose data cannot be read: {e}; or give --source simulator") from e


def commit() -> str:
    """The project's commit, with + if a file differs from it; `unknown` outside a checkout."""
    words = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass(frozen=True)
class Replayed:
    """A replay's outcome: the events sent, the pairs expected of them, the deltas that the first replica confirmed."""

    declaration: Declaration
    sent: Sent
    pairs: Pairs
    confirmed: list[dict[str, Any]]

    @classmethod
    def of(cls, platform: Platform, lineage: str) -> Replayed:
        settings = platform.settings
        declaration = load_source(settings.source).declaration
        sent = Sent.read(platform.folder / "sent", declaration)
        lines = read_lines(platform.layout.confirmations(0))
        pairs = Pairs.of(sent, declaration, settings.pi, settings.salt)
        return cls(declaration, sent, pairs, [c for c in lines if c["lineage"] == lineage])


def items_of(base: Manifest, declaration: Declaration) -> NDArray[np.int64]:
    """The item ids that have a row in a base."""
    rows = read_rows(base)
    keys = [rows[f.table][0] for f in declaration.features if f.view == "item" and f.table in rows]
    return np.concatenate(keys) if keys else np.empty(0, np.int64)


def finish(
    platform: Platform, base: Manifest, items: NDArray[np.int64], replayed: Replayed, figures: dict[str, Any]
) -> dict[str, Any]:
    """The report, from the platform's folder and topics."""
    settings, log = platform.settings, Log(platform.layout.log())
    newest = log.manifests(base.lineage)[-1]  # the base itself may be pruned by now
    positions = newest.positions or {"topic": "examples", "offsets": {}}
    kafka = platform.address("kafka")
    learned, records = joined(kafka, positions["topic"], positions["offsets"])
    with Refused(kafka) as refused:
        counts = refused.count()
    about = {"source": settings.source, "commit": commit(), "sync_every_s": settings.sync_every, **figures}
    return build(
        replayed.sent,
        replayed.pairs,
        replayed.declaration,
        learned,
        records,
        base,
        newest,
        replayed.confirmed,
        about,
        counts,
        items,
    )


def write(platform: Platform, replayed: Replayed, report: dict[str, Any]) -> list[Path]:
    """Writes report.md, report.json and the pictures into `report` in the platform's folder."""
    from infra.replay.pictures import auc_picture, freshness_picture

    folder = platform.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(report))
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    freshness_picture(replayed.confirmed, platform.settings.sync_every, folder / "freshness.png")
    auc_picture(report["auc_over_time"], replayed.declaration.judged, folder / "auc.png")
    return [folder / name for name in ("report.md", "report.json", "freshness.png", "auc.png")]


def slow_half(platform: Platform, console: Console) -> None:
    """Starts Airflow. Not before the replay has ended: the start takes a core for half a minute."""
    if not platform.settings.airflow:
        return
    with console.status("starting Airflow (Ctrl-C ends everything)"):
        platform.start_off([name for name in platform.state()["services"] if name.startswith("airflow-")])
    url = platform.address("airflow")
    console.print(airflow.login(platform.layout.airflow, url), highlight=False, soft_wrap=True)
    name = platform.settings.name
    console.print(
        f"  trigger sample_examples there, or all of it by: minutehand pipeline --name {name}", highlight=False
    )


def goodbye(platform: Platform, console: Console) -> None:
    """Prints the addresses and a curl line that works; returns at Ctrl-C."""
    name = platform.settings.name
    console.print(f"\nThe platform stays up until Ctrl-C (minutehand status --name {name} shows it). It answers at:")
    for service in ("mlflow", "join", model_server(0), rest(0), "trainer", sync(0)):
        with contextlib.suppress(PlatformError):
            page = "/?workflowType=machine_learning" if service == "mlflow" else ""  # the runs, not the GenAI page
            console.print(f"  {service:20} {platform.address(service)}{page}", highlight=False)
    source = load_source(platform.settings.source)
    first = next(iter(source.live())).features
    body = json.dumps({"instances": [{f.name: first[f.name] for f in source.declaration.served if f.name in first}]})
    url = f"{platform.address(rest(0))}/v1/models/{RANKER}:predict"
    console.print(f"\ncurl -s -d '{body}' {url}", highlight=False, markup=False, soft_wrap=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    console.print("ending everything")
