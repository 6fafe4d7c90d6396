"""The tables of good and bad messages that readers are held to: events.json and attributes.json in tests/vectors."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any, NamedTuple

from streaming.declaration import Declaration
from streaming.views import Column
from tests.support import PROJECT, shop_views

_FILE: dict[str, Any] = json.loads((PROJECT / "tests/vectors/events.json").read_text())
DECLARATION = Declaration.from_json(json.dumps(_FILE["declaration"]))


class Case(NamedTuple):
    """A message of a topic, and the kind of its fault ("": it is good)."""

    name: str
    topic: str
    message: bytes
    kind: str


def _case(entry: dict[str, Any]) -> Case:
    text = entry.get("message", "") + entry.get("repeat", "") * entry.get("times", 0) + entry.get("end", "")
    message = base64.b64decode(entry["base64"]) if "base64" in entry else text.encode()
    return Case(entry["name"], entry["topic"], message, entry.get("kind", ""))


CASES = [_case(entry) for entry in _FILE["cases"]]
UPSERTS = [_case(entry) for entry in json.loads((PROJECT / "tests/vectors/attributes.json").read_text())["cases"]]
"""Messages of `items` and `users`, of the shop with the views VIEWS."""
VIEWS = replace(shop_views.views, video=(Column("price", "number"), Column("born", "int"), Column("sizes", "ints")))
