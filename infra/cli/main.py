"""The command `minutehand`: runs the platform on one machine and looks at it."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.extras import MissingExtra
from infra.airflow import services as airflow
from infra.cli.flags import settings_flags, settings_of
from infra.platform import Platform, PlatformError
from infra.settings import SettingError
from infra.supervise.manager import tail
from infra.supervise.sentinel import AlreadyRunning

# Modules of other parts that bring subcommands: each offers add_parser(subparsers) and sets `run` (args -> exit code).
COMMANDS = ("infra.cli.demo", "infra.cli.deltas", "infra.cli.pipeline", "infra.cli.recommend")
OWN = ("up", "down", "status", "start", "restart", "logs")


def table(platform: Platform) -> None:
    """Services with their state and address; plain columns where there is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("service", "state", "pid", "restarts", "ready after", "address"):
        rows.add_column(
            column, justify="right" if column in ("pid", "restarts", "ready after") else "left", no_wrap=True
        )
    for name, s in platform.state().get("services", {}).items():
        seconds = f"{s['ready_s']:.1f} s" if s["ready_s"] else ""
        note = s["reason"] if s["state"] not in ("ready", "done") else s["address"]
        rows.add_row(name, s["state"], str(s["pid"] or ""), str(s["restarts"]), seconds, note)
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(rows)
    if address := platform.facts().get("addresses", {}).get("airflow"):
        print(airflow.login(platform.layout.airflow, address))


def up(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    only = tuple(name for name in args.only.split(",") if name)
    if args.detach:
        if platform.is_running():
            raise AlreadyRunning(f"{platform.folder} is already running; end it with: minutehand down")
        platform.start(only, timeout_s=platform.settings.start_within * 3, detach=True)
        table(platform)
        return 0

    def show() -> None:
        table(platform)
        print(f"logs in {platform.folder / 'logs'}; Ctrl-C ends it all", flush=True)

    return platform.run(only, when_ready=show)


def down(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    ran = platform.is_running()
    platform.stop()
    print("stopped" if ran else "it was not running")
    return 0


def status(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    if not platform.is_running():
        print(f"not running ({platform.folder}); start it with: minutehand up")
        return 3
    table(platform)
    states = platform.state().get("services", {})
    return 0 if all(s["state"] in ("ready", "done", "off") for s in states.values()) else 1


def start(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    began = time.monotonic()
    platform.start_off(args.service, platform.settings.start_within * 3)
    print(f"ready after {time.monotonic() - began:.1f} s: {', '.join(args.service)}")
    return 0


def restart(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    began = time.monotonic()
    platform.restart(args.service)
    print(f"{args.service} is ready again after {time.monotonic() - began:.1f} s, pid {platform.pid(args.service)}")
    return 0


def logs(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    path = platform.log(args.service)
    if not path.is_file():
        logged = sorted(p.stem for p in path.parent.glob("*.log"))
        raise PlatformError(f"there is no log of {args.service!r}; allowed are {', '.join(logged) or 'none yet'}")
    print(tail(path, args.lines), flush=True)
    if args.follow:
        _follow(path)
    return 0


def _follow(path: Path) -> None:
    at = path.stat().st_size
    while True:
        size = path.stat().st_size
        at = 0 if size < at else at  # it was cut
        if size > at:
            with path.open("rb") as f:
                f.seek(at)
                new = f.read(size - at)
            at += len(new)
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()
        time.sleep(0.2)


def parser(others: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """All subcommands: ours, and those of the modules `others`."""
    whole = argparse.ArgumentParser(
        "minutehand",
        description="A recommender platform whose served model is about a minute old at most.",
        epilog="Settings and their defaults: minutehand.toml. Start with: minutehand up",
    )
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    shared = settings_flags()

    def add(name: str, run: Any, what: str, text: str, example: str) -> argparse.ArgumentParser:
        p = commands.add_parser(
            name,
            parents=[shared],
            help=what,
            description=text,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        p.set_defaults(run=run)
        return p

    p = add(
        "up",
        up,
        "start the platform",
        "Start Kafka, join, MLflow, trainer, model servers and their syncs, in order, and restart what dies.\n"
        "Stays in the foreground until Ctrl-C, which ends everything. On an empty folder it serves an untrained base.",
        "minutehand up --set sync_every=5s --set replicas=2",
    )
    p.add_argument("--detach", action="store_true", help="return when all is ready; end it with `minutehand down`")
    p.add_argument(
        "--only", default="", metavar="A,B", help="these services and what they come after; the others stay off"
    )
    add("down", down, "end the platform", "End the platform and every process it started.", "minutehand down")
    add(
        "status",
        status,
        "show the services",
        "Show each service. Exit code: 0 all are ready (or off), 1 one is not, 3 the platform is not running.",
        "minutehand status",
    )
    p = add(
        "start",
        start,
        "start what `up --only` left out",
        "Start services that are off, with what they come after, and wait until they are ready.",
        "minutehand start airflow-api airflow-scheduler airflow-dag-processor airflow-triggerer",
    )
    p.add_argument("service", metavar="NAME", nargs="+", help="as `minutehand status` names it")
    p = add(
        "restart",
        restart,
        "restart one service",
        "End one service politely and wait until it is ready again.",
        "minutehand restart trainer",
    )
    p.add_argument("service", metavar="NAME", help="as `minutehand status` names it")
    p = add("logs", logs, "show a service's log", "Show the end of a service's log.", "minutehand logs trainer -f")
    p.add_argument("service", metavar="NAME", help="a service, or supervisor after `up --detach`")
    p.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    p.add_argument("-n", "--lines", type=int, default=50, help="how many lines (default: %(default)s)")
    for module in others:
        importlib.import_module(module).add_parser(commands)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    # The other parts' modules bring threads with what they import, and `up` forks.
    args = parser(() if words[:1] and words[0] in OWN else COMMANDS).parse_args(words)
    try:
        code: int = args.run(args)
        return code
    except (SettingError, PlatformError, AlreadyRunning, MissingExtra) as e:
        print(f"minutehand: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
