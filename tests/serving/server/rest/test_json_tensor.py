"""JSON and arrays: TensorFlow Serving's answers to bodies that are right, and its texts for those that are wrong."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo

from serving.server.rest.json_cells import KINDS, refusal
from serving.server.rest.json_tensor import inputs_of, reply_of, to_array
from serving.server.rest.json_text import parsed
from serving.server.runtime.servable import RequestError

ROWS = 100


def infos(**dtypes: str) -> dict[str, TensorInfo]:
    return {name: TensorInfo(dtype=f"DT_{dtype.upper()}") for name, dtype in dtypes.items()}


ONE_INT, FOUR = infos(x="int32"), infos(int="int32", str="string", float="float", dbl="double")
FOUR_ROWS = """{"instances": [
    {"int": [[1, 2], [3, 4]], "str": ["foo", "bar"], "float": [1.0, NaN], "dbl": [NaN]},
    {"int": [[7, 8], [9, 0]], "str": ["baz", {"b64": "aGVsbG8"}], "float": [2, Infinity], "dbl": [2.0]}
]}"""
INF = float("inf")
RIGHT: dict[str, tuple[str, dict[str, TensorInfo], dict[str, Any]]] = {
    "rows without a name": ('{"instances": [[1, 2], [3, 4], [5, 6]]}', ONE_INT, {"x": [[1, 2], [3, 4], [5, 6]]}),
    "rows with a name": ('{"instances": [{"x": 1}, {"x": 2}]}', ONE_INT, {"x": [1, 2]}),
    "numbers for floats": ('{"instances": [1, 2.0, 5.003]}', infos(x="float"), {"x": [1, 2, np.float32(5.003)]}),
    "numbers for doubles": ('{"instances": [1.0, 2, 0.662]}', infos(x="double"), {"x": [1, 2, 0.662]}),
    "the greatest integers": ('{"instances": [9223372036854775807]}', infos(x="int64"), {"x": [2**63 - 1]}),
    "without a sign": ('{"instances": [18446744073709551615]}', infos(x="uint64"), {"x": [2**64 - 1]}),
    "true and false": ('{"instances": [true, false]}', infos(x="bool"), {"x": [True, False]}),
    "base64": ('{"instances": [{"b64": "aGVsbG8="}, {"b64": "d29y"}]}', infos(x="string"), {"x": [b"hello", b"wor"]}),
    "base64 in lists": ('{"instances": [[{"b64": "aGVsbG8="}]]}', infos(x="string"), {"x": [[b"hello"]]}),
    "base64 in an input": ('{"instances": [{"x": [{"b64": "aGVsbG8="}]}]}', infos(x="string"), {"x": [[b"hello"]]}),
    "rows of four inputs": (FOUR_ROWS, FOUR, {
        "int": [[[1, 2], [3, 4]], [[7, 8], [9, 0]]], "str": [[b"foo", b"bar"], [b"baz", b"hello"]],
        "float": [[1, np.nan], [2, INF]], "dbl": [[np.nan], [2]],
    }),
    "empty lists": ('{"instances": [[], []]}', ONE_INT, {"x": [[], []]}),
    "columns": ('{"inputs": {"x": [[1, 2]], "more": 1}}', ONE_INT, {"x": [[1, 2]]}),
    "a column without a name": ('{"inputs": [[1, 2]]}', ONE_INT, {"x": [[1, 2]]}),
    "a scalar": ('{"inputs": 5}', ONE_INT, {"x": 5}),
    "a scalar of base64": ('{"inputs": {"b64": "aGVsbG8="}}', infos(x="string"), {"x": b"hello"}),
    "a name as b64": ('{"inputs": {"b64": [1]}}', infos(b64="int32"), {"b64": [1]}),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_body(name: str) -> None:
    text, signature, expected = RIGHT[name]
    arrays, rows = inputs_of(parsed(text.encode()), signature, ROWS)
    assert rows == ("instances" in text) and arrays.keys() == expected.keys()
    for alias, array in arrays.items():
        assert array.dtype == KINDS[signature[alias].dtype].dtype
        np.testing.assert_array_equal(array, np.array(expected[alias], array.dtype))


TWO = infos(int="int32", str="string")
DEEP = "[" * 33 + "]" * 33
WRONG: dict[str, tuple[str, dict[str, TensorInfo], str]] = {
    "nothing": ("", ONE_INT, "JSON Parse error: The document is empty"),
    "no value": ("instances = [1]", ONE_INT, "JSON Parse error: Invalid value. at offset: 0"),
    "a name without a colon": ('{"instances" [1]}', ONE_INT, "JSON Parse error: Missing a colon after a name"),
    "an object without a name": ("{1}", ONE_INT, "JSON Parse error: Missing a name for object member."),
    "a list without a comma": ('{"instances": [1 2]}', ONE_INT, "JSON Parse error: Missing a comma or ]"),
    "half a string": ('{"instances', ONE_INT, "JSON Parse error: Missing a closing quotation mark in string."),
    "two roots": ("{} {}", ONE_INT, "JSON Parse error: The document root must not be followed by other values."),
    "a number beyond float64": ('{"instances": [1e999]}', ONE_INT, "JSON Parse error: Number too big to be stored"),
    "not UTF-8": ('{"instances": ["\udcff"]}', ONE_INT, "JSON Parse error: "),
    "a list": ("[1]", ONE_INT, "JSON Value: [1] Is not object"),
    "neither": ("{}", ONE_INT, "Missing 'inputs' or 'instances' key"),
    "both": ('{"instances": [1], "inputs": [1]}', ONE_INT, "Not formatted correctly expecting only one of 'inputs' or"),
    "no list": ('{"instances": 1}', ONE_INT, "Excepting 'instances' to be an list/array"),
    "no rows": ('{"instances": []}', ONE_INT, "No values in 'instances' array"),
    "another size": ('{"instances": [[1, 2], [3, 4, 5]]}', ONE_INT, "element: 1 of 'instances' list. Error: INVALID_AR"
                     "GUMENT: Expecting tensor size: 2 but got: 3"),
    "another shape": ('{"instances": [[1, 2], [[3, 4]]]}', ONE_INT, "Expecting shape [2] but got: [1,2]"),
    "a list for a number": ('{"instances": [1, [1]]}', ONE_INT, "Expecting shape [] but got: [1]"),
    "ragged in a row": ('{"instances": [[[1], [1, 2]]]}', ONE_INT, "list at unexpected size: 2 at level: 1 expected"),
    "a number too high": ('{"instances": [[[1], 2]]}', ONE_INT, "JSON Value: 2 found at incorrect level: 2"),
    "a number too low": ('{"instances": [[1, [2]]]}', ONE_INT, "Encountered list at unexpected level: 1 expected < 1"),
    "strings": ('{"instances": ["a", "b"]}', infos(x="float"), '"a" Type: String is not of expected type: float'),
    "a string behind": ('{"instances": [[1, 2], ["a", 3]]}', ONE_INT, "is not of expected type: int32"),
    "null": ('{"instances": [null]}', ONE_INT, "Type: Null is not of expected type: int32"),
    "true for a number": ('{"instances": [1, true]}', ONE_INT, "Type: True is not of expected type: int32"),
    "a number for true": ('{"instances": [true, 1]}', infos(x="bool"), "Type: Number is not of expected type: bool"),
    "a fraction for an id": ('{"instances": [1.5]}', ONE_INT, "JSON Value: 1.5 Type: Number is not of expected type"),
    "an id of 2^63": ('{"instances": [9223372036854775808]}', infos(x="int64"), "is not of expected type: int64"),
    "an object": ('{"inputs": {"x": {"y": 1}}}', ONE_INT, "x: JSON Value: {\"y\": 1} Type: Object is not of expected"),
    "no base64": ('{"instances": [{"x": {"b64": "?"}}]}', infos(x="string"), "Unable to base64 decode"),
    "base64 of a number": ('{"instances": [[{"b64": 1}]]}', infos(x="string"), "formatted correctly for base64 data"),
    "half a surrogate": ('{"instances": ["\\ud800"]}', infos(x="string"), "JSON Value: \"\\ud800\" is not Unicode"),
    "2^24 + 1 as a float": ('{"instances": [16777217]}', infos(x="float"), "to float without loss of precision."),
    "2^53 + 1 as a double": ('{"instances": [9007199254740993]}', infos(x="double"), "without loss of precision."),
    "1e300 as a float": ('{"instances": [1e300]}', infos(x="float"), "Cannot convert JSON value: 1e+300 to float with"),
    "401 digits": ('{"instances": [1' + "0" * 400 + "]}", infos(x="float"), "to float without loss of precision."),
    "a complex number": ('{"instances": [1]}', infos(x="complex64"), "Conversion of JSON Value: [1] to type: compl"),
    "rows deep in lists": ('{"instances": [' + DEEP + "]}", ONE_INT, "nested deeper than 32"),
    "rows without names": ('{"instances": [1]}', TWO, "instances is a plain list, but expecting list of objects"),
    "a row that is none": ('{"instances": [{"int": 1, "str": "a"}, [1]]}', TWO, "object but got list at item 1"),
    "an object behind": ('{"instances": [["a"], {"x": "a"}]}', infos(x="string"), "list but got object at item 1"),
    "an input less": ('{"instances": [{"int": 1}]}', TWO, "JSON object: {\"int\": 1} keys must be equal to: int,str"),
    "an input less behind": ('{"instances": [{"int": 1, "str": "a"}, {"int": 1}]}', TWO, "element: 1 of 'instances'"),
    "an unknown input": ('{"instances": [{"int": 1, "str": "a", "shoe": 1}]}', TWO, "element: 0 key: shoe of 'inst"
                         "ances' list. Error: INVALID_ARGUMENT: JSON object: does not have named input: shoe"),
    "a column less": ('{"inputs": {"int": 1}}', TWO, "Missing named input: str in 'inputs' object."),
    "columns without names": ('{"inputs": [1]}', TWO, "inputs is a plain value/list, but expecting an object"),
    "ragged columns": ('{"inputs": [[1], [1, 2]]}', ONE_INT, "x: Encountered list at unexpected size: 2 at lev"),
    "too many rows": ('{"instances": ' + str([0] * 101) + "}", ONE_INT, "x: 101 rows, allowed are 100"),
    "too many rows in a column": ('{"inputs": ' + str([0] * 101) + "}", ONE_INT, "x: 101 rows, allowed are 100"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_body(name: str) -> None:
    text, signature, expected = WRONG[name]
    with pytest.raises(RequestError) as refused:
        inputs_of(parsed(text.encode(errors="surrogateescape")), signature, ROWS)
    assert refused.value.code.name == ("UNIMPLEMENTED" if "complex" in name else "INVALID_ARGUMENT")
    assert expected in refused.value.text and "\n" not in refused.value.text, refused.value.text


CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-300, 300), st.floats(), st.text(max_size=3),
    st.sampled_from([{"b64": "aGVsbG8"}, {"b64": "?"}, {"y": 1}, 2**24, 2**53 + 1, 3.5e38, "\ud800"]),
)  # fmt: skip
VALUES = st.recursive(CELLS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@settings(deadline=None)
@given(value=VALUES, dtype=st.sampled_from(sorted(KINDS)))
def test_a_value_is_an_array_or_something_is_wrong_with_a_cell(value: Any, dtype: int) -> None:
    info = TensorInfo(dtype=dtype)
    reason = refusal({"inputs": {"x": value}}, {"x": info}).text
    assert (to_array(value, info) is None) == ("does not fit" not in reason), reason


I = np.int32([[1, 2], [3, 4]])  # noqa: E741
BYTES = np.array([[b"hello", b"world"], [b"tf", b"\xff\0"]], object)
REPLIES: dict[str, tuple[dict[str, Any], bool, str]] = {
    "rows of one output": ({"i": I}, True, '{"predictions": [[1, 2], [3, 4]]}'),
    "columns of one output": ({"i": I}, False, '{"outputs": [[1, 2], [3, 4]]}'),
    "rows": ({"i": I, "f": np.float64([8, 9])}, True,
             '{"predictions": [{"i": [1, 2], "f": 8.0}, {"i": [3, 4], "f": 9.0}]}'),
    "columns": ({"i": I, "f": np.float64([8, 9])}, False, '{"outputs": {"i": [[1, 2], [3, 4]], "f": [8.0, 9.0]}}'),
    "a scalar": ({"i": np.int64(7)}, False, '{"outputs": 7}'),
    "a string": ({"s": b"a\0"}, False, '{"outputs": "a\\u0000"}'),
    "strings": ({"s": BYTES}, True, '{"predictions": [["hello", "world"], ["tf", "\\ufffd\\u0000"]]}'),
    "bytes": ({"s_bytes": BYTES[:1]}, True, '{"predictions": [[{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}]]}'),
    "the fewest digits": ({"f": np.float32([0.2, 1 / 3, 3e-5, 555557.5, 1e-45, 16777216])}, True,
                          '{"predictions": [0.2, 0.33333334, 3e-05, 555557.5, 1e-45, 16777216.0]}'),
    "truths": ({"b": np.array([True, False])}, True, '{"predictions": [true, false]}'),
    "no rows": ({"f": np.zeros((0, 2), "f4")}, True, '{"predictions": []}'),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply(name: str) -> None:
    outputs, rows, expected = REPLIES[name]
    assert json.loads(reply_of(outputs, rows)) == json.loads(expected)


def test_a_reply_with_numbers_that_are_not_finite() -> None:
    expected = b'{"predictions": [[NaN, Infinity], [3.0, -Infinity]]}'
    assert reply_of({"f": np.float32([[np.nan, INF], [3, -INF]])}, True) == expected


@settings(deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), max_size=5))
def test_a_float_comes_back(bits: list[int]) -> None:
    array = np.array(bits, np.uint32).view(np.float32)
    back = np.array(json.loads(reply_of({"f": array}, True))["predictions"], np.float32)
    np.testing.assert_array_equal(back, array)


WRONG_REPLIES: dict[str, tuple[dict[str, Any], str]] = {
    "scalars": ({"a": np.int32(1)}, "Tensor name: a has no shape information"),
    "two batches": ({"a": np.int32([1]), "b": np.int32([1, 2])}, "b has inconsistent batch size: 2 expecting: 1"),
    "half": ({"a": np.float16([1])}, "Failed to write JSON value for tensor type: half"),
    "complex": ({"a": np.complex64([1])}, "Failed to write JSON value for tensor type: complex64"),
}


@pytest.mark.parametrize("name", WRONG_REPLIES)
def test_outputs_that_are_no_rows(name: str) -> None:
    outputs, expected = WRONG_REPLIES[name]
    with pytest.raises(RequestError) as refused:
        reply_of(outputs, True)
    assert refused.value.code.name == "INVALID_ARGUMENT" and expected in refused.value.text


def test_an_empty_list_has_the_dimensions_of_the_signature() -> None:
    info = TensorInfo(dtype=types_pb2.DT_FLOAT)
    for size in (-1, 5):
        info.tensor_shape.dim.add(size=size)
    assert to_array([], info).shape == (0, 5)
