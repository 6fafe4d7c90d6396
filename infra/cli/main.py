"""The command `minutehand`: runs the platform on one machine and shows what it does."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence

from common import process
from common.errors import InputError
from infra.airflow import services as airflow
from infra.cli.command import add, print_table, settings_of
from infra.platform import Platform, PlatformError
from infra.supervise.reports import tail
from infra.supervise.sentinel import lock

# Modules with more subcommands. Each has add_parser(commands), which calls infra.cli.command.add.
COMMANDS = tuple(f"infra.cli.{name}" for name in ("demo", "deltas", "pipeline", "recommend", "source", "ab"))
OWN = ("up", "down", "status", "start", "restart", "logs")


def show(platform: Platform) -> None:
    """Prints the services with their state and address."""
    rows = []
    for name, s in platform.state().get("services", {}).items():
        seconds = f"{s['ready_s']:.1f} s" if s["ready_s"] else ""
        note = s["reason"] or s["address"]
        rows.append((name, s["state"], str(s["pid"] or ""), str(s["restarts"]), seconds, note))
    print_table(
        {"service": "left", "state": "left", "pid": "right", "restarts": "right", "ready after": "right",
         "address": "left"}, rows,
    )  # fmt: skip
    if address := platform.facts().get("addresses", {}).get("airflow"):
        print(airflow.login(platform.layout.airflow, address))


def up(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    only = tuple(name for name in args.only.split(",") if name)
    if args.detach:
        lock(platform.folder).close()  # raises Busy if the platform runs already
        platform.start(only, timeout_s=platform.settings.start_within * 3, detach=True)
        show(platform)
        return process.DONE

    def report() -> None:
        show(platform)
        print(f"logs in {platform.folder / 'logs'}; Ctrl-C ends it all", flush=True)

    return platform.run(only, when_ready=report)


def down(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    ran = platform.is_running()
    platform.stop()
    print("stopped" if ran else "it was not running")
    return process.DONE


def status(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    if not platform.is_running():
        reason = platform.state().get("reason")
        print(f"not running ({reason or platform.folder}); start it with: minutehand up")
        return process.REFUSED
    show(platform)
    states = platform.state().get("services", {})
    return process.DONE if all(s["state"] in ("ready", "done", "off") for s in states.values()) else process.FAILED


def start(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    began = time.monotonic()
    platform.start_off(args.service, platform.settings.start_within * 3)
    print(f"ready after {time.monotonic() - began:.1f} s: {', '.join(args.service)}")
    return process.DONE


def restart(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    began = time.monotonic()
    platform.restart(args.service)
    print(f"{args.service} is ready again after {time.monotonic() - began:.1f} s, pid {platform.pid(args.service)}")
    return process.DONE


def logs(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    path = platform.log(args.service)
    if not path.is_file():
        logged = sorted(p.stem for p in path.parent.glob("*.log"))
        raise PlatformError(f"there is no log of {args.service!r}; allowed are {', '.join(logged) or 'none yet'}")
    if args.follow:  # continues when the manager cuts the log
        os.execvp("tail", ["tail", "-n", str(args.lines), "-F", str(path)])
    print(tail(path, args.lines))
    return process.DONE


def parser(others: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """All subcommands: those of this module, and those of the modules `others`."""
    whole = argparse.ArgumentParser(
        "minutehand",
        description="A recommender platform whose served model is about a minute old at most.",
        epilog="Settings and their defaults: minutehand.toml. Start with: minutehand up",
    )
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    p = add(
        commands,
        "up",
        up,
        "start the platform",
        "Start Kafka, join, MLflow, trainer, model servers and their syncs, in order, and restart what dies.\n"
        "Stays in the foreground until Ctrl-C, which ends everything. On an empty folder it serves an untrained base.",
        "minutehand up --set sync_every=5s --set replicas=2",
    )
    p.add_argument("--detach", action="store_true", help="return when all is ready; end it with `minutehand down`")
    p.add_argument(
        "--only", default="", metavar="A,B", help="these services and those they start after; the others stay off"
    )
    text = "End the platform and every process it started."
    add(commands, "down", down, "end the platform", text, "minutehand down")
    text = "Show each service. Exit code: 0 all are ready (or off), 1 one is not, 3 the platform is not running."
    add(commands, "status", status, "show the services", text, "minutehand status")
    p = add(
        commands,
        "start",
        start,
        "start what `up --only` left out",
        "Start services that are off, with those they start after, and wait until they are ready.",
        "minutehand start airflow-api airflow-scheduler airflow-dag-processor airflow-triggerer",
    )
    p.add_argument("service", metavar="NAME", nargs="+", help="as `minutehand status` names it")
    text = "End one service politely and wait until it is ready again."
    p = add(commands, "restart", restart, "restart one service", text, "minutehand restart trainer")
    p.add_argument("service", metavar="NAME", help="as `minutehand status` names it")
    text = "Show the end of a service's log."
    p = add(commands, "logs", logs, "show a service's log", text, "minutehand logs trainer -f")
    p.add_argument("service", metavar="NAME", help="a service, or supervisor after `up --detach`")
    p.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    p.add_argument("-n", "--lines", type=int, default=50, help="how many lines (default: %(default)s)")
    for module in others:
        importlib.import_module(module).add_parser(commands)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    # The other modules import libraries that start threads, and `up` forks.
    args = parser(() if words[:1] and words[0] in OWN else COMMANDS).parse_args(words)

    def command() -> int:
        try:
            code: int = args.run(args)
            return code
        except (InputError, ValueError) as e:
            print(f"minutehand: {e}", file=sys.stderr)  # a person reads this: no time stamp
            return process.WRONG_INPUT
        except OSError as e:
            print(f"minutehand: {process.explained(e)}", file=sys.stderr)
            return process.FAILED

    process.log_to_stderr("%(message)s")
    return process.run(command)


if __name__ == "__main__":
    sys.exit(main())
