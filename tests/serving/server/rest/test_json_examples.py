"""tf.Examples in JSON: those that TensorFlow Serving takes, and its texts for those that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from tensorflow_serving.apis.input_pb2 import Input

from serving.server.rest.json_examples import input_of
from serving.server.runtime.servable import RequestError

ROWS = 100


def test_examples_without_a_context() -> None:
    body = {"examples": [{"names": ["foo", "bar"], "ratings": [8.0, 9.5], "age": 20}, {"names": "baz", "none": []}]}
    expected = """
        example_list {
          examples { features {
            feature { key: "names" value { bytes_list { value: "foo" value: "bar" } } }
            feature { key: "ratings" value { float_list { value: 8 value: 9.5 } } }
            feature { key: "age" value { int64_list { value: 20 } } }
          } }
          examples { features {
            feature { key: "names" value { bytes_list { value: "baz" } } }
            feature { key: "none" value { } }
          } }
        }"""
    assert input_of(body, ROWS) == text_format.Parse(expected, Input())


def test_examples_with_a_context() -> None:
    body = {
        "context": {"query": "pizza"},
        "examples": [{"names": ["baz", {"b64": "aGVsbG8="}], "mix": [1, True, False]}, {"up": float("inf")}],
    }
    expected = """
        example_list_with_context {
          context { features { feature { key: "query" value { bytes_list { value: "pizza" } } } } }
          examples { features {
            feature { key: "names" value { bytes_list { value: "baz" value: "hello" } } }
            feature { key: "mix" value { int64_list { value: 1 value: 1 value: 0 } } }
          } }
          examples { features { feature { key: "up" value { float_list { value: inf } } } } }
        }"""
    assert input_of(body, ROWS) == text_format.Parse(expected, Input())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a context that is a list": ({"context": [{"names": ["foo"]}]}, "Example must be JSON object but got JSON Array"),
    "no examples": ({"context": {}}, "key 'examples' is expected and was not found"),
    "no list": ({"examples": {"names": ["foo"]}}, "Expecting 'examples' value to be an list/array"),
    "an empty list": ({"examples": []}, "'examples' value is an empty array"),
    "lists in the list": ({"examples": [[{"names": ["foo"]}]]}, "Example must be JSON object but got JSON Array"),
    "null": ({"examples": [{"names": [10, None]}]}, "Feature: names has element with unexpected JSON type: Null"),
    "an object": ({"examples": [{"names": [10, {"test": 1}]}]}, "names has element with unexpected JSON type: Object"),
    "a list": ({"examples": [{"names": [[10], 20]}]}, "names has element with unexpected JSON type: Array"),
    "two types": ({"examples": [{"names": [10, 10.0]}]}, "element type in feature: names expecting type: int64"),
    "bytes, then a number": ({"examples": [{"names": ["a", 1]}]}, "in feature: names expecting type: bytes"),
    "2^64 - 13": ({"examples": [{"names": [20, 2**64 - 13]}]}, "names has uint64 element. Only int64 is supported."),
    "beyond float32": ({"examples": [{"names": 1e300}]}, "to float without loss of precision."),
    "half a surrogate": ({"examples": [{"\ud800": 1}]}, "is not Unicode text"),
    "too many": ({"examples": [{}] * 101}, "101 rows, allowed are 100"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_examples(name: str) -> None:
    body, expected = WRONG[name]
    with pytest.raises(RequestError) as refused:
        input_of(body, ROWS)
    assert refused.value.code.name == "INVALID_ARGUMENT" and expected in refused.value.text, refused.value.text
