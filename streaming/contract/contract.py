"""Judges the bytes of a message by schema.json, for the publisher, the archive and the feature push.

    contract = Contract(declaration)
    event = contract.read("impressions", message)      # BadMessage has a kind and a reason

The join's Contract.java reads the same file. tests/vectors/events.json has messages that both must judge alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streaming.declaration import Declaration

SCHEMA: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text())
VERSION: int = SCHEMA["version"]
MAX_MESSAGE_BYTES: int = SCHEMA["message"]["maxBytes"]
MAX_DEPTH: int = SCHEMA["message"]["maxDepth"]
MAX_NUMBER_CHARACTERS: int = SCHEMA["message"]["maxNumberCharacters"]
MAX_TIME_MS: int = SCHEMA["$defs"]["time"]["maximum"]
MAX_SUBTASKS: int = SCHEMA["progress"]["properties"]["subtasks"]["maximum"]

KINDS = ("size", "encoding", "json", "missing", "type", "range", "length", "reserved", "task")
"""The kinds of faults: too large; no UTF-8; no JSON object; a field is missing, of a wrong type, out of its range, too
long or too short, a reserved id; an action that is no task."""


class BadMessage(ValueError):
    """A message breaks the contract. `kind` is one of KINDS; the text names field, value and what is allowed."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Contract:
    """The schema of impressions, actions and heartbeats, with the features and tasks of a declaration."""

    def __init__(self, declaration: Declaration) -> None:
        defs = SCHEMA["$defs"]
        self._schemas = {name: _resolved(SCHEMA[name], defs) for name in ("impressions", "actions", "heartbeat")}
        shown, done = self._schemas["impressions"]["properties"], self._schemas["actions"]["properties"]
        shown["features"]["properties"] = {f.name: _resolved(defs[f.kind], defs) for f in declaration.features}
        shown["scores"]["properties"] = dict.fromkeys(declaration.tasks, defs["probability"])
        done["action"]["enum"] = list(declaration.tasks)

    def read(self, topic: str, message: bytes | None) -> dict[str, Any]:
        """The event of a message of `topic`, or a heartbeat: {"heartbeat_ms": t}. Raises BadMessage."""
        event = _parsed(message or b"")
        if "heartbeat_ms" in event:
            _check(self._schemas["heartbeat"], event, "message")
            return {"heartbeat_ms": event["heartbeat_ms"]}
        _check(self._schemas[topic], event, "message")
        return event

    def defaults(self, topic: str) -> dict[str, Any]:
        """Field -> its value if it is absent."""
        properties = self._schemas[topic]["properties"]
        return {name: schema["default"] for name, schema in properties.items() if "default" in schema}


def _resolved(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with each $ref replaced by its definition."""
    target = defs[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else {}
    merged = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    if "items" in merged:
        merged["items"] = _resolved(merged["items"], defs)
    if "properties" in merged:
        merged["properties"] = {name: _resolved(inner, defs) for name, inner in merged["properties"].items()}
    return merged


def _parsed(message: bytes) -> dict[str, Any]:
    if len(message) > MAX_MESSAGE_BYTES:
        raise BadMessage("size", f"message has {len(message)} bytes, allowed is up to {MAX_MESSAGE_BYTES}")
    try:
        text = message.decode()
    except UnicodeDecodeError as e:
        raise BadMessage("encoding", f"message is not UTF-8: {e.reason} at byte {e.start}") from None
    try:
        event = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
        )
    except RecursionError:
        raise BadMessage("json", f"message is nested too deep, allowed are {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as e:
        raise BadMessage("json", f"message is not JSON: {e}") from None
    if not isinstance(event, dict):
        raise BadMessage("json", f"message is {_short(event)}, allowed is a JSON object")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(event)
    return event


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    event = dict(pairs)
    if len(event) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadMessage("json", f"message is not JSON: {_short(twice)} is in one object twice")
    return event


def _integer(text: str) -> int:
    _check_length(text)
    return int(text)


def _float(text: str) -> float:
    _check_length(text)
    return float(text)


def _constant(text: str) -> Any:
    raise BadMessage("json", f"message is not JSON: {text} is no number")


def _check_length(text: str) -> None:
    if len(text) > MAX_NUMBER_CHARACTERS:
        raise BadMessage(
            "length", f"a number of {len(text)} characters ({_short(text)}), allowed are {MAX_NUMBER_CHARACTERS}"
        )


def _check_depth(event: dict[str, Any]) -> None:
    level: list[Any] = [event]
    for _ in range(MAX_DEPTH):
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, (dict, list))]
        if not level:
            return
    raise BadMessage("json", f"message is nested too deep, allowed are {MAX_DEPTH} levels")


_TYPES: dict[str, Any] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
}


def _check(schema: dict[str, Any], value: Any, name: str) -> None:
    """Raises BadMessage unless `value` fits. Knows the part of JSON Schema that schema.json uses."""
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
        raise BadMessage("type", f"{name} is {_short(value)}, allowed is {kind}")
    if kind == "string":
        _check_text(schema, value, name)
    elif kind == "array":
        if len(value) > schema["maxItems"]:
            raise BadMessage("length", f"{name} has {len(value)} items, allowed are {schema['maxItems']}")
        for place, item in enumerate(value):
            _check(schema["items"], item, f"{name}[{place}]")
    elif kind == "object":
        for field in schema.get("required", ()):
            if field not in value:
                raise BadMessage("missing", f"{field} is missing")
        for field, inner in schema["properties"].items():
            if field in value:
                _check(inner, value[field], field)
    else:
        _check_number(schema, value, name)


def _check_number(schema: dict[str, Any], value: Any, name: str) -> None:
    if "minimum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        raise BadMessage("range", f"{name} is {_short(value)}, allowed is {schema['minimum']} to {schema['maximum']}")
    if "exclusiveMaximum" in schema and not schema["exclusiveMinimum"] < value < schema["exclusiveMaximum"]:
        raise BadMessage("range", f"{name} is {_short(value)}, allowed is a number that is finite as a float32")
    if value in schema.get("not", {}).get("enum", ()):
        raise BadMessage("reserved", f"{name} is {value}, a reserved id")


def _check_text(schema: dict[str, Any], value: str, name: str) -> None:
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise BadMessage("encoding", f"{name} is {_short(value)}, which has no UTF-8") from None
    if "enum" in schema and value not in schema["enum"]:
        raise BadMessage("task", f"{name} is {_short(value)}, allowed are {', '.join(schema['enum'])}")
    low, high = schema.get("minBytes", 0), schema.get("maxBytes", MAX_MESSAGE_BYTES)
    if not low <= size <= high:
        raise BadMessage("length", f"{name} has {size} bytes, allowed are {low} to {high}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
