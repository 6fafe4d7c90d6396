"""The growth of a platform's source: compares its declaration with those that the platform's state was written under.

`minutehand up` asks it before any service starts, in a child process: its imports start threads, and `up` forks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from delta_log.log import Log
from streaming.archive import commits
from streaming.declaration import Declaration
from streaming.growth import ALLOWED, Declarations, compare
from streaming.source import load

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


class Refused(InputError):
    """A source has changed, and not by growth only. The message has a line of each change."""


def declared(source: str, states: str) -> str:
    """The source's declaration as JSON. Raises Refused if the states, as JSON of `Layout.states`, do not allow it."""
    now = Declaration.from_json(load(source).declaration.to_json())
    changed = [part for part in parts_of(json.loads(states)) if part.sha256 != now.sha256]
    if refused := refusals(changed, now):
        raise Refused(f"{'; '.join(refused)}; {ALLOWED} (minutehand source shows all)")
    return now.to_json()


def parts_of(states: Mapping[str, str]) -> Iterator[Part]:
    """The parts of a platform that have state, of all parts and their places (`Layout.states`)."""
    for name, place in states.items():
        part = {"join": _join, "archive": _archive}.get(name, _trainer)(name, Path(place))
        if part is not None:
            yield part


def _join(name: str, job: Path) -> Part | None:
    if not job.is_file() or not (text := job.read_text()).startswith("{"):
        return None  # a version before wrote a text without the declaration: the join itself judges it
    try:
        declaration = Declaration.from_json(json.dumps(json.loads(text)["declaration"]))
    except (ValueError, TypeError, KeyError) as e:
        raise InputError(f"{job}: is no job of this version: {e}") from e
    return Part(name, JOIN, declaration.sha256, declaration)


def _archive(name: str, folder: Path) -> Part | None:
    if (state := commits.read(folder)) is None:
        return None
    sha256 = state[0].declaration
    return Part(name, ARCHIVE, sha256, Declarations(folder).read(sha256))


def _trainer(name: str, folder: Path) -> Part | None:
    log = Log(folder)
    if (lineage := log.serving()) is None:
        return None
    sha256 = log.newest_base(lineage).declaration
    return Part(name, TRAINER.format(lineage), sha256, Declarations(folder).read(sha256))


def refusals(changed: list[Part], now: Declaration) -> list[str]:
    """A line for each change that is not allowed, with the parts that it concerns."""
    concerned: dict[str, list[str]] = {}
    for part in changed:
        unknown = f"was written under declaration {part.sha256[:12]}, which it does not hold"
        lines = compare(part.declaration, now).refused if part.declaration else (unknown,)
        for line in lines:
            concerned.setdefault(line, []).append(part.name)
    return [f"{', '.join(names)}: {line}" for line, names in concerned.items()]
