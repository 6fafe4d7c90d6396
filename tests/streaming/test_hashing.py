"""The hash, the draw and the sum, against the shared vectors and against plain Python integers."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.declaration import INT64_MAX, INT64_MIN
from streaming.hashing import draw, fnv1a64, learned_sum, mix64, text_id
from tests.support import PROJECT

VECTORS = json.loads((PROJECT / "tests/vectors" / "hash.json").read_text())
M = 2**64 - 1
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def fnv(data: bytes) -> int:
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & M
    return h


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M
    return x ^ (x >> 31)


def test_published_values():
    # The FNV authors' own test vectors, and splitmix64's first output for the seed 0 (0 + the golden gamma, mixed).
    assert fnv1a64(["", "a", "foobar"]).tolist() == [0xCBF29CE484222325, 0xAF63DC4C8601EC8C, 0x85944171F73967E8]
    assert mix64([0x9E3779B97F4A7C15]).tolist() == [0xE220A8397B1DCDAF]


def test_vectors():
    for v in VECTORS["fnv1a64"]:
        assert str(fnv1a64([v["text"]])[0]) == v["value"], v
    for v in VECTORS["mix64"]:
        assert str(mix64(int(v["x"]))[0]) == v["value"], v
    for v in VECTORS["draw"]:
        assert draw([v["id"]], v["salt"])[0] == v["u"], v
    for v in VECTORS["sum"]:
        columns = [[one[key] for one in v["learned"]] for key in ("id", "task", "label")]
        assert str(learned_sum(*columns)) == v["sum"] and len(columns[0]) == v["count"]


@given(st.lists(TEXT), TEXT)
def test_equals_plain_integers(ids, salt):
    assert fnv1a64(ids).tolist() == [fnv(i.encode()) for i in ids]
    assert draw(ids, salt).tolist() == [(mix(fnv(f"{salt}:{i}".encode())) >> 11) * 2.0**-53 for i in ids]


@given(TEXT)
def test_the_id_of_a_text_is_its_hash_as_an_int64(text):
    assert text_id(text) == int(fnv1a64([text]).view(np.int64)[0]) and INT64_MIN + 2 <= text_id(text) <= INT64_MAX


def test_no_text_has_a_reserved_id(monkeypatch):
    for reserved in (INT64_MIN, INT64_MIN + 1):
        monkeypatch.setattr("streaming.hashing._BASIS", np.uint64(reserved % 2**64))
        text_id.cache_clear()
        assert text_id("") == reserved + 2  # the hash of the empty text is the basis
    text_id.cache_clear()


@given(st.lists(st.tuples(TEXT, st.integers(0, 100), st.integers(0, 1))))
def test_sum_equals_plain_integers(learned):
    columns = [[one[k] for one in learned] for k in range(3)]
    expected = sum(mix(fnv(i.encode()) ^ mix(2 * t + label + 1)) for i, t, label in learned) & M
    assert learned_sum(*columns) == expected
    assert learned_sum(fnv1a64(columns[0]), *columns[1:]) == expected


def test_sliced_and_chunked_arrays():
    whole = pa.array(["zz", "a", "foobar", ""])
    expected = fnv1a64(["a", "foobar", ""]).tolist()
    assert fnv1a64(whole.slice(1)).tolist() == expected
    assert fnv1a64(pa.chunked_array([["a"], ["foobar", ""]])).tolist() == expected
    assert fnv1a64(pa.array([], pa.string())).tolist() == []


def test_refuses_nulls_and_unequal_lengths():
    with pytest.raises(ValueError, match="null"):
        fnv1a64(pa.array(["a", None]))
    with pytest.raises(ValueError, match="2 ids"):
        learned_sum(["a", "b"], [0], [1])


def test_the_draw_is_uniform():
    u = draw([f"i{k}" for k in range(20_000)], "minutehand")
    # The Kolmogorov-Smirnov distance of 20,000 uniform draws stays below 1.63 / sqrt(n) with 99 %.
    assert np.abs(np.sort(u) - (np.arange(20_000) + 0.5) / 20_000).max() < 1.63 / np.sqrt(20_000)
