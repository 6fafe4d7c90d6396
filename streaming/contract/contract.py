"""Judges the bytes of a message by schema.json, for the publisher, the archive and the feature push.

    contract = Contract(declaration)
    event = contract.read("impressions", message)      # BadMessage has a kind and a reason

The join's Contract.java reads the same file. tests/vectors/events.json has messages that both must judge alike.
"""

from __future__ import annotations

import json
from typing import Any

from streaming.contract.quick import Quick
from streaming.contract.schema import (
    MAX_DEPTH,
    MAX_MESSAGE_BYTES,
    MAX_NUMBER_CHARACTERS,
    BadMessage,
    check,
    rule,
    shown,
)
from streaming.declaration import Declaration
from streaming.topics import FORGET, USERS
from streaming.views import VIEWS, Views

KINDS = {"int": "int64", "ints": "ints", "number": "number"}
"""The kind of a view's column -> its type in schema.json."""


class Contract:
    """The schema of all messages that apps send, with the features and tasks of a declaration.

    `views` are the source's: their columns are attributes of users and items, besides the declared ones.
    """

    def __init__(self, declaration: Declaration, views: Views | None = None) -> None:
        self._rules = {name: rule(name) for name in ("impressions", "actions", "heartbeat", "forget", *VIEWS)}
        impression, action = self._rules["impressions"]["properties"], self._rules["actions"]["properties"]
        impression["features"]["properties"] = {f.name: rule(f.kind) for f in declaration.features}
        impression["scores"]["properties"] = dict.fromkeys(declaration.tasks, rule("probability"))
        action["action"]["enum"] = list(declaration.tasks)
        of_view = (views or Views()).columns(declaration)
        for topic, view in VIEWS.items():
            declared = {f.name: f.kind for f in declaration.features if f.view == view}
            allowed = {c.name: rule(declared.get(c.name) or KINDS[c.kind]) for c in of_view[view]}
            self._rules[topic]["properties"]["attributes"]["properties"] = allowed
        self._quick = {topic: Quick(self._rules[topic]) for topic in ("impressions", "actions")}

    def read(self, topic: str, message: bytes | None) -> dict[str, Any]:
        """The event of a message of `topic`, or a heartbeat: {"heartbeat_ms": t, "lease": l}. Raises BadMessage.

        Users and items have no heartbeats.
        """
        if message and topic in self._quick and (quick := self._quick[topic].event(message)) is not None:
            return quick
        event = parsed(message or b"")
        if "heartbeat_ms" in event and topic not in VIEWS:
            check(self._rules["heartbeat"], event, "message")
            return {"heartbeat_ms": event["heartbeat_ms"], "lease": event.get("lease", "")}
        self.check(topic, event)
        return event

    def check(self, topic: str, event: dict[str, Any]) -> None:
        """Raises BadMessage unless an event fits the rules of `topic`. One of `users` may ask to forget."""
        check(self._rules["forget" if topic == USERS and FORGET in event else topic], event, "message")

    def rule(self, name: str) -> dict[str, Any]:
        """The rule of a topic's messages, or `forget`, as JSON Schema with our own minBytes and maxBytes."""
        return self._rules[name]

    def defaults(self, topic: str) -> dict[str, Any]:
        """Field -> its value if it is absent."""
        properties = self._rules[topic]["properties"]
        return {name: schema["default"] for name, schema in properties.items() if "default" in schema}


def parsed(message: bytes) -> dict[str, Any]:
    """The JSON object of a message. Raises BadMessage: too large, no UTF-8, no JSON, a name twice, nested too deep."""
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
        raise BadMessage("json", f"message is {shown(event)}, allowed is a JSON object")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(event)
    return event


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    event = dict(pairs)
    if len(event) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadMessage("json", f"message is not JSON: {shown(twice)} is in one object twice")
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
            "length", f"a number of {len(text)} characters ({shown(text)}), allowed are {MAX_NUMBER_CHARACTERS}"
        )


def _check_depth(event: dict[str, Any]) -> None:
    level: list[Any] = [event]
    for _ in range(MAX_DEPTH):
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, (dict, list))]
        if not level:
            return
    raise BadMessage("json", f"message is nested too deep, allowed are {MAX_DEPTH} levels")
