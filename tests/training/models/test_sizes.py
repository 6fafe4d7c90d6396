"""Rows of several sizes: how they are declared, and what the model makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.models.test_deepfm import SMALL
from training.models.model import load


def test_a_table_has_the_dimension_that_is_declared_for_it() -> None:
    model = load("mmoe?dim=5&sizes=clip:2@16,tags:1", SMALL)
    assert model.dims == {"user": 6, "clip": 7, "tags": 2, "clip_tail": 4}
    assert model.stored == {"user": ("user",), "clip": ("clip_tail", "clip"), "tags": ("tags",)}
    assert {name: tuple(model.dense[f"{name}_projection"].variable.shape) for name in ("clip", "tags")} == {
        "clip": (2, 5),
        "tags": (1, 5),
    }


def test_a_long_row_is_taken_as_it_is_and_a_short_one_projected() -> None:
    model = load("deepfm?dim=3&sizes=clip:2@16,tags:1", SMALL)
    p = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
    model.dense["clip_projection"].variable.assign(p)
    short = np.array([[0.5, 1, 2, 15], [0, 0, 0, 0], [0.5, 1, 2, 15], [0, 0, 0, 0]], np.float32)
    long = np.array([[0, 0, 0, 0, 0], [7, 8, 9, 10, 16], [7, 8, 9, 10, 16], [-0.0] * 5], np.float32)
    joined = model.joined("clip", {"clip_tail": short, "clip": long}).numpy()
    np.testing.assert_array_equal(joined, [[0.5, *([1, 2] @ p)], [7, 8, 9, 10], [7, 8, 9, 10], [0] * 4])
    tags = np.array([[0.5, 3]], np.float32)
    np.testing.assert_array_equal(model.joined("tags", {"tags": tags}), [[0.5, 3, 0, 0]])  # [identity | 0] at first


@pytest.mark.parametrize(
    ("sizes", "message"),
    {
        "clip": "sizes has 'clip', allowed is TABLE:DIM or TABLE:DIM@SIGHTS, of each table once: user, clip, tags",
        "clip:two": "sizes has 'clip:two', allowed is TABLE:DIM",
        "item:2": "sizes has 'item:2', allowed is TABLE:DIM",
        "clip:2,clip:1": "sizes has 'clip:1', allowed is TABLE:DIM or TABLE:DIM@SIGHTS, of each table once",
        "clip:3": "sizes has 'clip:3', allowed is 1 <= DIM < dim=3 and SIGHTS >= 1",
        "clip:0@4": "sizes has 'clip:0@4', allowed is 1 <= DIM < dim=3",
        "clip:2@0": "sizes has 'clip:2@0', allowed is 1 <= DIM < dim=3 and SIGHTS >= 1",
    }.items(),
)
def test_a_wrong_size_is_refused_by_name(sizes: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        load(f"deepfm?dim=3&sizes={sizes}", SMALL)
    assert f"model 'deepfm': {message}" in str(refused.value)
