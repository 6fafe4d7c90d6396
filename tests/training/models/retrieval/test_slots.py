"""Ids in rows of float32: each 64-bit id comes back, and a place without one stays one."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from training.models.retrieval.slots import ids_of, rows_of


def test_every_id_comes_back() -> None:
    random = np.random.default_rng(0)
    special = [0, 1, -1, 2**22, 2**44, -(2**44), 2**63 - 1, -(2**63)]
    ids = np.concatenate([special, random.integers(-(2**63), 2**63 - 1, 992)]).reshape(-1, 8)
    known = random.random(ids.shape) < 0.8
    known[0] = True
    rows = rows_of(ids, known)
    assert rows.dtype == np.float32 and rows.shape == (125, 24) and np.isfinite(rows).all()
    found, there = ids_of(tf.constant(rows))
    np.testing.assert_array_equal(there, known)
    np.testing.assert_array_equal(found.numpy()[known], ids[known])


def test_an_unknown_row_has_no_ids() -> None:
    assert not ids_of(tf.zeros([2, 12]))[1].numpy().any()
