"""The rules of schema.json, and the judge of a value by them: of a declaration, of an exposure and of a message.

check(rule("id"), 7.9, "user")      # BadMessage: user is 7.9, allowed is integer
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text())
VERSION: int = SCHEMA["version"]
MAX_MESSAGE_BYTES: int = SCHEMA["message"]["maxBytes"]
MAX_DEPTH: int = SCHEMA["message"]["maxDepth"]
MAX_NUMBER_CHARACTERS: int = SCHEMA["message"]["maxNumberCharacters"]
MAX_TIME_MS: int = SCHEMA["$defs"]["time"]["maximum"]
MAX_SUBTASKS: int = SCHEMA["progress"]["properties"]["subtasks"]["maximum"]

KINDS = ("size", "encoding", "json", "missing", "type", "range", "length", "reserved", "task", "attribute")
"""The kinds of faults: too large; no UTF-8; no JSON object; a field is missing, of a wrong type, out of its range, too
long or too short, a reserved id; an action that is no task; an attribute that is no column of the source's view."""


class BadMessage(ValueError):
    """A message breaks the contract. `kind` is one of KINDS; the text names field, value and what is allowed."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def rule(name: str) -> dict[str, Any]:
    """The rule of a type of values, such as id, ids, number or time; or of a topic's messages."""
    return _resolved(SCHEMA["$defs"].get(name) or SCHEMA[name])


def _resolved(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with each $ref replaced by its definition."""
    target = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else {}
    merged = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    if "items" in merged:
        merged["items"] = _resolved(merged["items"])
    if "properties" in merged:
        merged["properties"] = {name: _resolved(inner) for name, inner in merged["properties"].items()}
    return merged


_TYPES: dict[str, Any] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
}


def check(schema: dict[str, Any], value: Any, name: str) -> None:
    """Raises BadMessage unless `value` fits. Knows the part of JSON Schema that schema.json uses."""
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
        raise BadMessage("type", f"{name} is {shown(value)}, allowed is {kind}")
    if kind == "string":
        _check_text(schema, value, name)
    elif kind == "array":
        if len(value) > schema["maxItems"]:
            raise BadMessage("length", f"{name} has {len(value)} items, allowed are {schema['maxItems']}")
        for place, item in enumerate(value):
            check(schema["items"], item, f"{name}[{place}]")
    elif kind == "object":
        for field in schema.get("required", ()):
            if field not in value:
                raise BadMessage("missing", f"{field} is missing")
        for field, inner in schema["properties"].items():
            if field in value:
                check(inner, value[field], field)
        if not schema.get("additionalProperties", True):
            for field in value.keys() - schema["properties"]:
                allowed = ", ".join(schema["properties"]) or "none: the source's view has no column"
                raise BadMessage("attribute", f"{name} has {shown(field)}, allowed are {allowed}")
    else:
        _check_number(schema, value, name)


def _check_number(schema: dict[str, Any], value: Any, name: str) -> None:
    if "minimum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        raise BadMessage("range", f"{name} is {shown(value)}, allowed is {schema['minimum']} to {schema['maximum']}")
    if "exclusiveMaximum" in schema and not schema["exclusiveMinimum"] < value < schema["exclusiveMaximum"]:
        raise BadMessage("range", f"{name} is {shown(value)}, allowed is a number that is finite as a float32")
    if value in schema.get("not", {}).get("enum", ()):
        raise BadMessage("reserved", f"{name} is {value}, a reserved id")


def _check_text(schema: dict[str, Any], value: str, name: str) -> None:
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise BadMessage("encoding", f"{name} is {shown(value)}, which has no UTF-8") from None
    if "enum" in schema and value not in schema["enum"]:
        raise BadMessage("task", f"{name} is {shown(value)}, allowed are {', '.join(schema['enum'])}")
    low, high = schema.get("minBytes", 0), schema.get("maxBytes", MAX_MESSAGE_BYTES)
    if not low <= size <= high:
        raise BadMessage("length", f"{name} has {size} bytes, allowed are {low} to {high}")


def shown(value: Any) -> str:
    """A value as an error has it, cut to 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        text = "a number that is too long to print"
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of NumPy and pandas as Python's, a tuple or an array as a list."""
    if type(value) in (int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value
