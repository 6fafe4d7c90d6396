"""SavedModels through TensorFlow's C API: every data type as a list and as bytes, strings, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.tensor_pb2 import TensorProto

from serving.server.runtime.servable import LoadOptions, Servable
from serving.server.runtime.session import MAX_BYTES, SessionError
from serving.server.runtime.tensors import DTYPES, STRING, to_proto
from tests.support import saved_model

NAMES = {types_pb2.DataType.Name(kind): kind for kind in (*DTYPES, STRING)}


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    """A model whose signature DT_X answers its input of this type."""
    folder = saved_model.write(tmp_path_factory.mktemp("same") / "1", saved_model.identity({n: n for n in NAMES}))
    servable = Servable("same", 1, folder, LoadOptions())
    yield servable
    servable.close()


def values(name: str) -> np.ndarray:
    if NAMES[name] == STRING:
        strings = np.empty(4, object)
        strings[:] = [b"", b"a\0b", b"x" * 22, b"y" * 100_000]
        return strings.reshape(2, 2)
    return np.array([[0, 1, 1], [3, 100, 1]]).astype(DTYPES[NAMES[name]])


@pytest.mark.parametrize("name", NAMES)
def test_each_type_goes_in_and_out(same: Servable, name: str) -> None:
    expected = values(name)
    for value in (
        expected,
        expected[:, ::-1][:, ::-1],  # not in one piece
        to_proto(expected, TensorProto()),
        to_proto(expected, TensorProto(), content=True),
    ):
        y = same.run(name, {"x": value})["y"]
        assert y.dtype == expected.dtype and y.tolist() == expected.tolist()
    for shape in ((), (0,), (2, 0)):
        empty = np.full(shape, expected.ravel()[-1], expected.dtype)
        for value in (empty, to_proto(empty, TensorProto())):
            y = same.run(name, {"x": value})["y"]
            assert y.shape == shape and y.tolist() == empty.tolist()


def test_a_list_may_end_at_the_first_of_equal_values(same: Servable) -> None:
    short = TensorProto(dtype=1, tensor_shape={"dim": [{"size": 4}]}, float_val=[1, 2])
    assert same.run("DT_FLOAT", {"x": short})["y"].tolist() == [1, 2, 2, 2]
    text = TensorProto(dtype=7, tensor_shape={"dim": [{"size": 2}]}, string_val=[b"a"])
    assert same.run("DT_STRING", {"x": text})["y"].tolist() == [b"a", b"a"]


def test_numbers_are_lists_where_clients_look() -> None:
    cases: dict[str, tuple[Any, list[Any]]] = {
        "float_val": (np.float32([1.5, 2]), [1.5, 2]),
        "int_val": (np.array([-1, 2], np.int8), [-1, 2]),
        "half_val": (np.array([1, -2], np.float16), [0x3C00, 0xC000]),
        "scomplex_val": (np.complex64([1 + 2j]), [1, 2]),
        "bool_val": (np.array([True, False]), [True, False]),
        "uint64_val": (np.array([2**64 - 1], np.uint64), [2**64 - 1]),
        "string_val": (np.array(["ä", "b"]), ["ä".encode(), b"b"]),
    }
    for field, (array, listed) in cases.items():
        assert list(getattr(to_proto(array, TensorProto()), field)) == listed
    assert list(to_proto(np.array([1], ml_dtypes.bfloat16), TensorProto()).half_val) == [0x3F80]


BAD = {
    "a bomb": TensorProto(dtype=9, tensor_shape={"dim": [{"size": 10**12}]}, int64_val=[1]),
    "a bomb of strings": TensorProto(dtype=7, tensor_shape={"dim": [{"size": MAX_BYTES + 1}]}, string_val=[b""]),
    "a bomb by overflow": TensorProto(dtype=9, tensor_shape={"dim": [{"size": 2**32}, {"size": 2**32}]}),
    "content too short": TensorProto(dtype=9, tensor_shape={"dim": [{"size": 20}]}, tensor_content=b"abc"),
    "no such type": TensorProto(dtype=99, tensor_shape={"dim": [{"size": 20}]}),
    "a negative size": TensorProto(dtype=9, tensor_shape={"dim": [{"size": -1}]}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_tensor_that_is_none(same: Servable, name: str) -> None:
    with pytest.raises(SessionError, match="tensor parsing error: x") as refused:
        same.run("DT_INT64", {"x": BAD[name]})
    assert refused.value.code == 3


def test_another_type_is_refused_by_the_session(same: Servable) -> None:
    with pytest.raises(SessionError, match="float.*int64|int64.*float"):
        same.run("DT_FLOAT", {"x": np.array([1])})


def test_any_shape_that_the_graph_takes(tmp_path: Path) -> None:
    half = Servable("half", 1, saved_model.write(tmp_path / "1"), LoadOptions())
    for x in ([1.0, 2.0], 3.0, [[1.0]], [[[1.0, 5.0]]]):
        np.testing.assert_array_equal(half.run("serving_default", {"x": np.float32(x)})["y"], np.float32(x) / 2 + 2)
    half.close()
    half.close()  # a second time changes nothing


def test_a_signature_of_a_tensor_that_is_missing(tmp_path: Path) -> None:
    wrong = saved_model.HALF_PLUS_TWO.replace('name: "y:0"', 'name: "z:0"')
    half = Servable("half", 1, saved_model.write(tmp_path / "1", wrong), LoadOptions())
    with pytest.raises(SessionError, match="Tensor z:0"):
        half.run("serving_default", {"x": np.float32([1])})
    half.close()
    with pytest.raises(SessionError, match="train"):
        Servable("half", 1, tmp_path / "1", LoadOptions(tags=("train",)))
