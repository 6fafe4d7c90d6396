"""`minutehand source`: shows what the source has changed since the platform wrote its state; see docs/growing.md."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from common import process
from infra.cli.command import add, settings_of
from infra.growth import parts_of, refusals
from infra.platform import Platform, declaration_of
from streaming.declaration import Declaration
from streaming.growth import ALLOWED, compare


def add_parser(commands: Any) -> None:
    add(
        commands,
        "source",
        run,
        "show what the source has changed, before anything happens",
        "Compare the source's declaration with the one that the platform's state was written under: the join's job,\n"
        "the archive, and the served lineage of each model. Prints each change, what will happen, and the commands.\n"
        "It changes nothing. Exit code: 0 nothing has changed or the source has grown, 2 a change is not allowed.",
        "minutehand source --set source=shop.py",
    )


def run(args: argparse.Namespace) -> int:
    platform = Platform(settings_of(args))
    source = platform.settings.source
    now = Declaration.from_json(declaration_of(source))
    parts = list(parts_of(platform.layout.states()))
    if not parts:
        print(f"{source}: no state was written yet; any declaration is allowed")
        return process.DONE
    changed = [part for part in parts if part.sha256 != now.sha256]
    if not changed:
        print(f"{source}: nothing has changed since {', '.join(part.name for part in parts)} wrote their state")
        return process.DONE
    refused = refusals(changed, now)
    for line in dict.fromkeys(line for p in changed if p.declaration for line in compare(p.declaration, now).added):
        print(f"+ {line}")
    if refused:
        print("\n".join(f"! {line}" for line in refused))
        print(f"not allowed: {ALLOWED}. Undo the change, or begin another platform (--name).")
        return process.WRONG_INPUT
    for part in changed:
        print(f"{part.name}: {part.grows}")
    chosen = [("--name", args.name), ("--settings", args.settings), *(("--set", value) for value in args.set)]
    flags = "".join(f" {flag} {shlex.quote(value)}" for flag, value in chosen if value)
    steps = ("down", "up") if platform.is_running() else ("up",)
    print("to do it: " + " && ".join(f"minutehand {step}{flags}" for step in steps))
    print("then restart the app's servers, which send the new features and actions")
    return process.DONE
