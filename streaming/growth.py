"""The growth of a source: compares two declarations, and keeps the declarations that a folder was written under.

    growth = compare(old, new)
    growth.added        # ("feature hits (number) is added, with default 0.0", "task share is added")
    growth.refused      # ("feature price is removed",): empty if what `old` made can be used under `new`

A source grows by features, whose defaults stand for what earlier events did not have, and by tasks at the end. Any
other change gives what was stored another meaning, so it is refused by name (docs/growing.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from common.disk import replace
from common.errors import InputError
from streaming.declaration import Declaration, Feature

ALLOWED = "allowed are new features, and new tasks at the end"


class Growth(NamedTuple):
    """The changes from one declaration to another, a line each: those that are allowed, and those that are not."""

    added: tuple[str, ...]
    refused: tuple[str, ...]


def compare(old: Declaration, new: Declaration) -> Growth:
    """Compares the parts of two declarations that stored state depends on. Policies and views are no part of it."""
    before, now = ({f.name: f for f in d.features} for d in (old, new))
    added = [_described(f, f.table in old.tables) for name, f in now.items() if name not in before]
    refused = [f"feature {name} is removed" for name in before if name not in now]
    for name in before.keys() & now.keys():
        refused += _differences(before[name], now[name])
    stayed = [name for name in now if name in before]
    if not refused and stayed != list(before):
        refused.append(f"the order of the features is {', '.join(stayed)}, was {', '.join(before)}")
    added += [f"task {task} is added" for task in new.tasks if task not in old.tasks]
    removed = [f"task {task} is removed" for task in old.tasks if task not in new.tasks]
    if not removed and new.tasks[: len(old.tasks)] != old.tasks:
        removed = [
            f"tasks are {', '.join(new.tasks)}, were {', '.join(old.tasks)}: new ones have their place at the end"
        ]
    changed = [
        f"{field} is {getattr(new, field)!r}, was {getattr(old, field)!r}"
        for field in ("name", "judged", "window_ms")
        if getattr(new, field) != getattr(old, field)
    ]
    kinds = [task for task in old.tasks if (task in old.values) != (task in new.values)]
    changed += [f"task {task} is {'of a' if task in new.values else 'without a'} value, was not" for task in kinds]
    return Growth(tuple(added), tuple(sorted(refused) + removed + changed))


def _described(feature: Feature, shares: bool) -> str:
    table = f", in the {'' if shares else 'new '}table {feature.table}" if feature.table else ""
    return f"feature {feature.name} ({feature.kind}) is added, with default {feature.default!r}{table}"


def _differences(old: Feature, new: Feature) -> list[str]:
    return [
        f"feature {old.name}: {field} is {getattr(new, field)!r}, was {getattr(old, field)!r}"
        for field in ("kind", "table", "default", "logged")
        if getattr(new, field) != getattr(old, field)
    ]


class Declarations:
    """The declarations that a folder's content was written under: declarations/<sha256>.json in it."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def keep(self, declaration: Declaration) -> None:
        path = self._path(declaration.sha256)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, declaration.to_json().encode())

    def read(self, sha256: str) -> Declaration | None:
        """The declaration with that sha256; None if the folder does not hold it."""
        try:
            return Declaration.from_json(self._path(sha256).read_text())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as e:
            raise InputError(f"{self._path(sha256)}: is no declaration of this version: {e}") from e

    def _path(self, sha256: str) -> Path:
        return self.folder / "declarations" / f"{sha256}.json"

    def grown(self, sha256: str, new: Declaration, remedy: str) -> Declaration:
        """The declaration with that sha256, from which `new` has grown. Raises InputError, with `remedy`, if it has
        not, or if the folder does not hold that declaration."""
        old = self.read(sha256)
        if old is None:
            raise InputError(
                f"{self.folder}: was written under declaration {sha256[:12]}, which it does not hold, and the source's"
                f" is {new.sha256[:12]}: allowed is the source as it was, or {remedy}"
            )
        if refused := compare(old, new).refused:
            raise InputError(f"{self.folder}: {'; '.join(refused)}: {ALLOWED}; or {remedy}")
        return old
