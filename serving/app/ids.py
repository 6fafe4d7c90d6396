"""Ids as apps have them: an int64 as it is, or a text, of which `streaming.hashing.text_id` makes the int64."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from streaming.contract.schema import BadMessage, check, rule, shown
from streaming.hashing import text_id

MAX_TEXT_BYTES = 256
SCHEMA = {
    "anyOf": [{k: v for k, v in rule("id").items()}, {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_BYTES}],
    "description": f"an int64, or a text of up to {MAX_TEXT_BYTES} bytes",
}
_TEXT = {"type": "string", "minBytes": 1, "maxBytes": MAX_TEXT_BYTES}


def number(value: Any, name: str, texts: set[str]) -> int:
    """The int64 of an id. Adds its text to `texts` if it is one. Raises BadMessage."""
    if isinstance(value, str):
        check(_TEXT, value, name)
        texts.add(value)
        return text_id(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadMessage("type", f"{name} is {shown(value)}, allowed is an integer or a text")
    check(rule("id"), value, name)
    return value


def of_path(text: str, name: str) -> int:
    """The int64 of an id in a path. A whole number is one; a text of digits is written in quotes. Raises BadMessage."""
    if re.fullmatch("-?[0-9]{1,20}", text):
        return number(int(text), name, set())
    quoted = len(text) > 2 and text[0] == text[-1] == '"'
    return number(text[1:-1] if quoted else text, name, set())


def numbers(values: Any, kinds: Mapping[str, str], texts: set[str]) -> Any:
    """Features or attributes with their texts replaced. Those of kind `id` and `ids` may be texts."""
    if not isinstance(values, dict):
        return values
    made = dict(values)
    for name, value in values.items():
        if kinds.get(name) == "id" and isinstance(value, str):
            made[name] = number(value, name, texts)
        elif kinds.get(name) == "ids" and isinstance(value, list):
            made[name] = [number(v, name, texts) if isinstance(v, str) else v for v in value]
    return made
