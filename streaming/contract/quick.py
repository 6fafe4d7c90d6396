"""Judges most good messages in a tenth of the time: whatever it is not sure of, it leaves to the contract itself.

quick = Quick(rule)                 # the rules of a topic's messages
event = quick.event(message)        # None: let streaming.contract.contract decide, and name the fault

The parser takes the last of two equal names, a number of any length and any depth. So a message must have as many
colons as its event has names, no long run of digits, and few brackets.
"""

from __future__ import annotations

from typing import Any

import orjson

from streaming.contract.schema import MAX_DEPTH, MAX_MESSAGE_BYTES, MAX_NUMBER_CHARACTERS, BadMessage, check

_OF_NUMBERS = bytes(ord("0") if chr(byte) in "0123456789+-.eE" else byte for byte in range(256))
_EXACT = 2.0**62
_LONG_NUMBER = b"0" * (MAX_NUMBER_CHARACTERS + 1)


class Quick:
    """The rules of one topic's messages, sorted by the kind of their values."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._required, self._fields = schema["required"], _Fields(schema["properties"])

    def event(self, message: bytes) -> dict[str, Any] | None:
        """The event of a message that certainly fits the rules; None if that is not certain."""
        if len(message) > MAX_MESSAGE_BYTES or message.count(b"{") + message.count(b"[") > MAX_DEPTH:
            return None
        try:
            event = orjson.loads(message)
        except orjson.JSONDecodeError:
            return None
        if type(event) is not dict or "heartbeat_ms" in event or _LONG_NUMBER in message.translate(_OF_NUMBERS):
            return None
        for field in self._required:
            if field not in event:
                return None
        return event if self._fields.names(event) == message.count(b":") else None


class _Fields:
    """The rules of an object's fields. It may have no others.

    All integers and numbers allow 0, all texts a dash and all lists none.
    """

    def __init__(self, properties: dict[str, dict[str, Any]]) -> None:
        self._known = properties.keys()
        of_kind: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for name, schema in properties.items():
            of_kind.setdefault(schema["type"], []).append((name, schema))
        self._integers = [(name, *_range(schema)) for name, schema in of_kind.pop("integer", [])]
        self._lists = [
            (name, schema["maxItems"], *_range(schema["items"]))
            for name, schema in of_kind.get("array", [])
            if schema["items"]["type"] == "integer"
        ]
        self._numbers = [(name, *_bounds(schema)) for name, schema in of_kind.pop("number", [])]
        self._texts = [
            (name, schema.get("minBytes", 0), schema["maxBytes"])
            for name, schema in of_kind.get("string", [])
            if "enum" not in schema
        ]
        self._objects = [(name, _Fields(schema["properties"])) for name, schema in of_kind.pop("object", [])]
        listed = {name for name, *_ in (*self._lists, *self._texts)}
        self._others = [pair for pairs in of_kind.values() for pair in pairs if pair[0] not in listed]

    def names(self, event: dict[str, Any]) -> int:
        """The number of names in an object and the declared objects in it; -1 if a value does not fit."""
        for name, low, high in self._integers:
            value = event.get(name, 0)
            if type(value) is not int or not low <= value <= high:
                return -1
        for name, most, low, high in self._lists:
            values = event.get(name, ())
            if type(values) is not list and values != () or len(values) > most:
                return -1
            for value in values:
                if type(value) is not int or not low <= value <= high:
                    return -1
        for name, least, most in self._numbers:
            number = event.get(name, 0.0)
            if type(number) is not float and type(number) is not int or not least <= number <= most:
                return -1
        for name, short, long in self._texts:
            text = event.get(name, "-")
            if type(text) is not str or not text.isascii() or not short <= len(text) <= long:
                return -1
        try:
            for name, schema in self._others:
                if name in event:
                    check(schema, event[name], name)
        except BadMessage:
            return -1
        if not event.keys() <= self._known:
            return -1
        names = len(event)
        for name, fields in self._objects:
            if name in event:
                inner = fields.names(event[name]) if type(event[name]) is dict else -1
                if inner < 0:
                    return -1
                names += inner
        return names


def _bounds(schema: dict[str, Any]) -> tuple[float, float]:
    """The least and the greatest number that is certainly allowed. The parser makes a larger integer a float."""
    if "minimum" in schema:
        return schema["minimum"], schema["maximum"]
    return max(schema["exclusiveMinimum"], -_EXACT), min(schema["exclusiveMaximum"], _EXACT)


def _range(schema: dict[str, Any]) -> tuple[int, int]:
    """The least and the greatest allowed integer. The reserved ones are the least of all."""
    reserved = schema.get("not", {}).get("enum", ())
    return max([schema["minimum"], *(value + 1 for value in reserved)]), schema["maximum"]
