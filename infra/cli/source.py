"""`minutehand source`: shows what the source has changed since the platform wrote its state; see docs/growing.md."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from common import process
from common.errors import InputError
from delta_log.log import Log
from infra.cli.command import add, settings_of
from infra.layout import Layout, trainer
from infra.platform import Platform, declaration_of
from infra.settings import Settings
from streaming.archive import commits
from streaming.declaration import Declaration
from streaming.growth import ALLOWED, Declarations, compare

JOIN = "continues; an impression that is open has the new defaults, and the new tasks are open"
ARCHIVE = "continues; days before are read with the new defaults, and a new task has no weight there"
TRAINER = "begins a new lineage with the rows and weights of {}, which continues at its positions and is served"


class Part(NamedTuple):
    """A part of the platform that has state: what it does if the source has grown, and the state's declaration.

    `declaration` is None if the part does not hold it; then only `sha256` tells whether it is another one.
    """

    name: str
    grows: str
    sha256: str
    declaration: Declaration | None


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
    parts = list(parts_of(platform.settings))
    if not parts:
        print(f"{source}: no state was written yet; any declaration is allowed")
        return process.DONE
    changed = [part for part in parts if part.sha256 != now.sha256]
    if not changed:
        print(f"{source}: nothing has changed since {', '.join(part.name for part in parts)} wrote their state")
        return process.DONE
    refused = list(refusals(changed, now))
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


def parts_of(settings: Settings) -> Iterator[Part]:
    """The parts of a platform that have state."""
    layout = Layout(settings)
    if (job := layout.join / "state" / "job.json").is_file():
        try:
            declaration = Declaration.from_json(json.dumps(json.loads(job.read_text())["declaration"]))
        except (ValueError, TypeError, KeyError) as e:
            raise InputError(f"{job}: is no job of this version: {e}") from e
        yield Part("join", JOIN, declaration.sha256, declaration)
    if state := commits.read(layout.archive):
        sha256 = state[0].declaration
        yield Part("archive", ARCHIVE, sha256, Declarations(layout.archive).read(sha256))
    for model in settings.models:
        log = Log(layout.log(model.name))
        if lineage := log.serving():
            sha256 = log.newest_base(lineage).declaration
            yield Part(trainer(model.name), TRAINER.format(lineage), sha256, Declarations(log.path).read(sha256))


def refusals(changed: list[Part], now: Declaration) -> Iterator[str]:
    """A line for each change that is not allowed, with the parts that it concerns."""
    concerned: dict[str, list[str]] = {}
    for part in changed:
        unknown = f"was written under declaration {part.sha256[:12]}, which it does not hold"
        lines = compare(part.declaration, now).refused if part.declaration else (unknown,)
        for line in lines:
            concerned.setdefault(line, []).append(part.name)
    for line, names in concerned.items():
        yield f"{', '.join(names)}: {line}"
