"""`minutehand recommend`: ranks items for a user on the running platform; see docs/features.md."""

from __future__ import annotations

import argparse
import json
from typing import Any

from infra.cli.command import Justify, add, print_table, settings_of
from infra.layout import model_server
from infra.platform import Platform, PlatformError
from serving.signatures import RANKER


def add_parser(commands: Any) -> None:
    p = add(
        commands,
        "recommend",
        run,
        "recommend items to a user",
        "Rank the recently popular items for a user: features from Feast, scores from the served model.\n"
        "The platform must be running, with its feature push (setting feast).",
        "minutehand recommend --user 7 --top 10",
    )
    p.add_argument("--user", type=int, required=True, metavar="U", help="the user's id; one that is new works too")
    p.add_argument("--top", type=int, default=10, metavar="N", help="how many items (default: %(default)s)")
    p.add_argument("--task", help="rank by this task's score (default: the source's judged one)")
    p.add_argument(
        "--given", action="append", default=[], metavar="NAME=VALUE", help="a feature of the request, as JSON; repeated"
    )
    p.add_argument("--json", action="store_true", help="one JSON object an item, with all scores and features")


def run(args: argparse.Namespace) -> int:
    from serving.client import Scorer, light
    from serving.recommend import recommend

    platform = Platform(settings_of(args))
    facts = platform.facts()
    if not facts:
        raise PlatformError(f"no platform {platform.settings.name!r} has run here: minutehand up")
    settings, addresses = facts["settings"], facts["addresses"]
    light()
    from features.store import Features

    folder = platform.layout.features
    if not (folder / "state.json").is_file():
        raise PlatformError(f"{folder} holds no features yet: is the service `features` running?")
    servers = [addresses[model_server(i)] for i in range(int(settings["replicas"]))]
    store = Features(folder, settings["source"])
    scorer = Scorer(servers, RANKER, store.plan.declaration)
    items = recommend(store, scorer, args.user, args.top, task=args.task, given=dict(map(_pair, args.given)))
    if args.json:
        print("\n".join(json.dumps(item._asdict()) for item in items))
    else:
        columns: dict[str, Justify] = {"item": "left", **dict.fromkeys(items[0].scores, "right")}
        rows = ([str(item.item_id), *(f"{score:.4f}" for score in item.scores.values())] for item in items)
        print_table(columns, rows, f"user {args.user}, by delta {items[0].seq}")
    return 0


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value) if equals else None
    except ValueError:
        raise PlatformError(f"--given is {text!r}; allowed is NAME=VALUE, the value as JSON") from None
