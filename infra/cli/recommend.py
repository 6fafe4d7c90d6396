"""`minutehand recommend` ranks items for a user on the running platform, `minutehand forget` forgets a user."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from infra.cli.command import Justify, add, print_table, settings_of
from infra.platform import Platform, PlatformError

if TYPE_CHECKING:
    from serving.app.client import Minutehand


def add_parser(commands: Any) -> None:
    p = add(
        commands,
        "recommend",
        run,
        "recommend items to a user",
        "Ask the platform's service for a user's list, as an app does (docs/your-app.md), but show it to nobody.\n"
        "The platform must be running, with the settings feast and app.",
        "minutehand recommend --user 7 --top 10",
    )
    p.add_argument("--user", type=_user, required=True, metavar="U", help="the user's id; one that is new works too")
    p.add_argument("--top", type=int, default=10, metavar="N", help="how many items (default: %(default)s)")
    p.add_argument("--task", help="rank by this task's score (default: as the source declares with `rank`)")
    p.add_argument(
        "--given", action="append", default=[], metavar="NAME=VALUE", help="a feature of the request, as JSON; repeated"
    )
    p.add_argument("--json", action="store_true", help="one JSON object an item")
    p = add(
        commands,
        "forget",
        forget,
        "forget a user",
        "Ask the platform's service to forget what a user did, and the user's attributes (docs/profiles.md).\n"
        "The platform must be running, with the settings feast and app.",
        "minutehand forget --user 7",
    )
    p.add_argument("--user", type=_user, required=True, metavar="U", help="the user's id")


def forget(args: argparse.Namespace) -> int:
    with _service(args) as minutehand:
        minutehand.forget(args.user)
    print(f"user {args.user}: Kafka has the request; the feature push forgets what happened until now")
    return 0


def _service(args: argparse.Namespace) -> Minutehand:
    """The service of the platform that the flags name."""
    from serving.app.client import Minutehand

    platform = Platform(settings_of(args))
    addresses = platform.facts().get("addresses", {})
    if not addresses:
        raise PlatformError(f"no platform {platform.settings.name!r} has run here: minutehand up")
    if "app" not in addresses:
        raise PlatformError("app or feast is false, so nobody answers; allowed is minutehand up with both true")
    return Minutehand(addresses["app"])


def run(args: argparse.Namespace) -> int:
    with _service(args) as minutehand:
        context = dict(map(_pair, args.given))
        made = minutehand.recommend(args.user, args.top, context, task=args.task, log=False)
    items, model = made["items"], made["model"]
    if args.json:
        print("\n".join(json.dumps(item) for item in items))
    else:
        columns: dict[str, Justify] = {"item": "left", **dict.fromkeys(items[0]["scores"], "right"), "source": "left"}
        rows = (
            [str(item["item_id"]), *(f"{score:.4f}" for score in item["scores"].values()), item["source"]]
            for item in items
        )
        print_table(columns, rows, f"user {args.user}, by delta {model['seq']} of lineage {model['lineage']}")
    return 0


def _user(text: str) -> int | str:
    """An id: a whole number as it is, else a text."""
    try:
        return int(text)
    except ValueError:
        return text


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value) if equals else None
    except ValueError:
        raise PlatformError(f"--given is {text!r}; allowed is NAME=VALUE, the value as JSON") from None
