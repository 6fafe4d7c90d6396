"""Reads good impressions and actions by column, as Arrow does: what it is not sure of, it leaves to the contract.

quick = Quick(rule, schema)          # the rule of a topic's messages, the columns of its files
table = quick.table(messages)        # without written_ms, partition and offset; None: judge each message by itself

Arrow's reader takes a name twice, ignores names that it does not know, and reads a null as absent. So the messages must
have as many colons as the table has values. It judges no value, so the limits of the rule are checked by column.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from streaming.contract.schema import MAX_MESSAGE_BYTES, MAX_NUMBER_CHARACTERS

_TYPES = {"integer": pa.int64(), "number": pa.float64(), "string": pa.string(), "array": pa.list_(pa.int64())}
_OF_NUMBERS = bytes(ord("0") if chr(byte) in "0123456789+-.eE" else byte for byte in range(256))
_LONG_NUMBER = b"0" * (MAX_NUMBER_CHARACTERS + 1)
PREFIXES = {"features": "feature_", "scores": "score_"}
"""An object of an impression -> the begin of its columns' names."""


class Unsure(Exception):
    """A message may not fit the rule."""


class Quick:
    """The rule of one topic's messages, and the columns of its files."""

    def __init__(self, rule: dict[str, Any], columns: pa.Schema, defaults: dict[str, Any]) -> None:
        """`defaults`: column -> its value if it is absent; null if it is not among them."""
        self._rule, self._columns, self._defaults = rule, columns, defaults
        self._parsed = pa.schema(_types(rule))
        self._options = pj.ParseOptions(explicit_schema=self._parsed, unexpected_field_behavior="ignore")

    def table(self, messages: Sequence[bytes]) -> pa.Table | None:
        """The columns of messages that certainly fit the rule; None if that is not certain of one of them."""
        try:
            return self._table(messages)
        except (Unsure, pa.ArrowInvalid):
            return None

    def _table(self, messages: Sequence[bytes]) -> pa.Table:
        text = b"\n".join(messages)
        if text.count(b"\n") >= len(messages) or max(map(len, messages)) > MAX_MESSAGE_BYTES:
            raise Unsure
        if not all(m.startswith(b"{") and m.endswith(b"}") for m in messages):
            raise Unsure  # Arrow's reader crashes the process on a bare `null`
        if _LONG_NUMBER in text.translate(_OF_NUMBERS):
            raise Unsure
        options = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
        table = pj.read_json(io.BytesIO(text), read_options=options, parse_options=self._options).combine_chunks()
        if table.num_rows != len(messages):
            raise Unsure
        values = 0
        columns = {}
        for name, rule, column in _fields(self._rule, table):
            values += len(column) - column.null_count
            if rule["type"] != "object":
                _check(rule, column)
                columns[name] = column
        if values != text.count(b":"):
            raise Unsure
        for field in self._rule["required"]:
            if columns[field].null_count:
                raise Unsure
        return self._filled(columns)

    def _filled(self, columns: dict[str, Any]) -> pa.Table:
        """The columns of the topic's files. An absent value has its default."""
        filled = {}
        for field in self._columns:
            if (column := columns.get(field.name)) is None:
                continue
            if column.null_count and (default := self._defaults.get(field.name)) is not None:
                if pa.types.is_list(field.type):
                    column = pa.array([default if v is None else v for v in column.to_pylist()], field.type)
                else:
                    column = pc.fill_null(column, default)
            filled[field.name] = column.cast(field.type)
        return pa.table(filled)


def _types(rule: dict[str, Any]) -> list[tuple[str, pa.DataType]]:
    """The fields of an object and their types, as Arrow reads them from JSON."""
    return [
        (name, pa.struct(_types(inner)) if inner["type"] == "object" else _TYPES[inner["type"]])
        for name, inner in rule["properties"].items()
    ]


def _fields(rule: dict[str, Any], table: pa.Table) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """The name, the rule and the values of each field, also of those in objects, as the files name them."""
    for name, inner in rule["properties"].items():
        column = table[name].chunk(0) if table[name].num_chunks else table[name].combine_chunks()
        yield name, inner, column
        if inner["type"] == "object":
            for place, (field, of_field) in enumerate(inner["properties"].items()):
                yield PREFIXES[name] + field, of_field, pc.struct_field(column, [place])


def _check(rule: dict[str, Any], column: Any) -> None:
    """Raises Unsure unless all values are certainly allowed."""
    if rule["type"] == "array":
        if (pc.max(pc.list_value_length(column)).as_py() or 0) > rule["maxItems"]:
            raise Unsure
        rule, column = rule["items"], pc.list_flatten(column)
        if column.null_count:
            raise Unsure
    if rule["type"] == "string":
        column.validate(full=True)  # the reader does not check that a string is UTF-8
        if "enum" in rule:
            if not pc.all(pc.is_in(column, pa.array(rule["enum"]))).as_py():
                raise Unsure
            return
        low, high, column = rule["minBytes"], rule["maxBytes"], pc.binary_length(column)
    else:
        low, high = _limits(rule)
    limits = pc.min_max(column)
    least, most = limits["min"].as_py(), limits["max"].as_py()
    if least is not None and not low <= least <= most <= high:
        raise Unsure


def _limits(rule: dict[str, Any]) -> tuple[float, float]:
    """The least and the greatest value that is certainly allowed. The reserved ids are the least of all."""
    if "exclusiveMinimum" in rule:
        return rule["exclusiveMinimum"] / 2, rule["exclusiveMaximum"] / 2
    reserved = rule.get("not", {}).get("enum", ())
    return max([rule["minimum"], *(value + 1 for value in reserved)]), rule["maximum"]
