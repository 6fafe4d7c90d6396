"""Plain values as YAML for people: mappings as paragraphs, short lists on a line, long texts as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

WORDS = r"(?!(?:true|false|yes|no|on|off|y|n|null|~)$)"  # YAML 1.1 reads these as something else than themselves
PLAIN = re.compile(WORDS + r"[A-Za-z/$][^\s,\[\]{}#&*!|>'\"%@`:]*|-{1,2}[A-Za-z][A-Za-z_-]*|\d+[a-z]", re.I)
# A value in a paragraph may hold commas, and spaces and colons that do not follow one another.
LOOSE = re.compile(WORDS + r"[A-Za-z/$](?:[^#&*!|>'\"%@`\n\\:]|:(?! ))*(?<![\s:])", re.I)
WIDTH = 118


def scalar(value: Any, loose: bool = False) -> str:
    """One value; quoted as JSON where it would be read as something else."""
    plain = isinstance(value, str) and (LOOSE if loose else PLAIN).fullmatch(value)
    return str(value) if plain else json.dumps(value)


def sequence(name: str, value: list[Any], pad: str) -> str:
    line = f"{pad}{name}: [{', '.join(scalar(v) for v in value)}]\n"
    if len(line) <= WIDTH or name == "test":
        return line
    return f"{pad}{name}:\n" + "".join(f"{pad}  - {scalar(v, loose=True)}\n" for v in value)


def text(values: Mapping[str, Any], indent: int = 0, anchors: Mapping[str, Any] | None = None) -> str:
    """`values` as lines; a value equal to one of `anchors` is written as *name."""
    pad, lines = " " * indent, []
    for name, value in values.items():
        known = [anchor for anchor, whole in (anchors or {}).items() if whole == value]
        if known:
            lines.append(f"{pad}{name}: *{known[0]}\n")
        elif isinstance(value, Mapping) and set(value) == {"condition"}:
            lines.append(f"{pad}{name}: {{condition: {value['condition']}}}\n")
        elif isinstance(value, Mapping):
            lines.append(f"{pad}{name}:\n{text(value, indent + 2, anchors)}" if value else f"{pad}{name}: {{}}\n")
        elif isinstance(value, list):
            lines.append(sequence(name, value, pad))
        elif isinstance(value, str) and value.endswith("\n"):
            lines.append(f"{pad}{name}: |\n" + "".join(f"{pad}  {line}\n" for line in value.splitlines()))
        else:
            lines.append(f"{pad}{name}: {scalar(value, loose=True)}\n")
    return "".join(lines)
