"""`minutehand recommend`: what the running platform would show a user; see docs/features.md."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from infra.platform import Platform, PlatformError
from infra.settings import Settings
from infra.supervise.processes import read_json
from serving.signatures import RANKER


def add_parser(commands: Any) -> None:
    from infra.cli.main import settings_flags, settings_of

    p = commands.add_parser(
        "recommend",
        parents=[settings_flags()],
        help="recommend items to a user",
        description=(
            "Rank the recently popular items for a user: features from Feast, scores from the served model.\n"
            "The platform must be running, with its feature push (setting feast)."
        ),
        epilog="example: minutehand recommend --user 7 --top 10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--user", type=int, required=True, metavar="U", help="the user's id; one that is new works too")
    p.add_argument("--top", type=int, default=10, metavar="N", help="how many items (default: %(default)s)")
    p.add_argument("--task", help="rank by this task's score (default: the source's judged one)")
    p.add_argument(
        "--given", action="append", default=[], metavar="NAME=VALUE", help="a feature of the request, as JSON; repeated"
    )
    p.add_argument("--json", action="store_true", help="one JSON object an item, with all scores and features")
    p.set_defaults(run=lambda args: run(args, settings_of(args)))


def run(args: argparse.Namespace, settings: Settings) -> int:
    from serving.client import PredictionFailed, Scorer, light
    from serving.recommend import NothingToRecommend, recommend

    facts = read_json(Platform(settings).folder / "platform.json")
    if not facts:
        raise PlatformError(f"no platform {settings.name!r} has run here: minutehand up")
    state, addresses = facts["settings"], facts["addresses"]
    light()
    from features.store import Features

    if not (settings.folder / "features" / "state.json").is_file():
        raise PlatformError(f"{settings.folder / 'features'} holds no features yet: is the service `features` running?")
    servers = [addresses[f"model-server-{i}"] for i in range(int(state["replicas"]))]
    try:
        store = Features(settings.folder / "features", state["source"])
        scorer = Scorer(servers, RANKER, store.plan.declaration)
        found = recommend(store, scorer, args.user, args.top, task=args.task, given=dict(map(_pair, args.given)))
    except (NothingToRecommend, PredictionFailed, ValueError) as e:
        raise PlatformError(str(e)) from None
    if args.json:
        for item in found:
            print(json.dumps(item._asdict()))
        return 0
    _print(args.user, found)
    return 0


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value) if equals else None
    except ValueError:
        raise PlatformError(f"--given is {text!r}; allowed is NAME=VALUE, the value as JSON") from None


def _print(user: int, found: list[Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"user {user}, by delta {found[0].seq}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("item", no_wrap=True)
    for task in found[0].scores:
        table.add_column(task, justify="right", no_wrap=True)
    for item in found:
        table.add_row(str(item.item_id), *(f"{score:.4f}" for score in item.scores.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
