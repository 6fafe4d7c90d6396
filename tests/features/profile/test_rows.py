"""Rows of profiles: merging and coarsening keep every count and every newest time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from features.profile import rows
from features.profile.rows import LEVELS, MAX_MS, Rows, actions, joined, merged, places, slots, times
from streaming.slots import DAY_MS, HOUR_MS, MINUTE_MS

Row = tuple[int, int, int, int, int, int]
"""owner, slot, action, ts_ms, feature, count"""
IDS = st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1])
TIMES = st.one_of(st.integers(0, 3 * HOUR_MS), st.sampled_from([0, DAY_MS - 1, DAY_MS, 30 * DAY_MS, MAX_MS]))
ROW = st.tuples(st.integers(0, 2), st.sampled_from([0, 63]), st.sampled_from([0, 64]), TIMES, IDS, st.integers(-2, 2))
SOME = st.lists(ROW, max_size=30)
LEVEL = st.sampled_from(LEVELS)


def columns(some: list[Row]) -> Rows:
    owner, slot, action, ts_ms, feature, count = np.array(some, np.int64).reshape(-1, 6).T
    return Rows(owner, feature, places(slot, action, ts_ms), count)


def counted(some: list[Row], slice_ms: int) -> list[tuple[int, ...]]:
    """What one pass over the rows gives: the key of each slice, its sum, and its newest time."""
    sums: Counter[tuple[int, ...]] = Counter()
    newest: dict[tuple[int, ...], int] = {}
    for owner, slot, action, ts_ms, feature, count in some:
        key = (owner, slot, action, ts_ms // slice_ms, feature)
        sums[key] += count
        newest[key] = max(ts_ms, newest.get(key, 0))
    return [(*key, sums[key], newest[key]) for key in sorted(newest)]


def read(made: Rows, slice_ms: int) -> list[tuple[int, ...]]:
    ts_ms = times(made.place)
    parts = (made.owner, slots(made.place), actions(made.place), ts_ms // slice_ms, made.feature, made.counts, ts_ms)
    return [tuple(row) for row in np.stack(parts, 1).tolist()]


@settings(max_examples=30, deadline=None)
@given(SOME, LEVEL)
def test_merged_rows_are_the_count_of_each_slice(some: list[Row], slice_ms: int) -> None:
    assert read(merged(columns(some), slice_ms), slice_ms) == counted(some, slice_ms)


@settings(max_examples=30, deadline=None)
@given(SOME, SOME, SOME)
def test_coarsening_in_steps_and_in_any_parts_is_coarsening_at_once(a: list[Row], b: list[Row], c: list[Row]) -> None:
    minutes = joined((merged(columns(a), MINUTE_MS), merged(columns(b), MINUTE_MS)))
    days = merged(joined((merged(minutes, HOUR_MS), columns(c))), DAY_MS)
    assert read(days, DAY_MS) == counted(a + b + c, DAY_MS)


def test_a_sealed_blob_is_read_as_it_was_written_or_refused() -> None:
    data = np.arange(6, dtype="<i8").tobytes()
    blob = rows.seal(data)
    assert bytes(rows.unsealed(blob, "x")) == data
    for place in range(len(blob)):
        flipped = blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]
        with pytest.raises(InputError, match="^x: a blob is corrupt, its checksum differs$"):
            rows.unsealed(flipped, "x")
    for wrong in (b"", blob[:4], None, "text"):
        with pytest.raises(InputError):
            rows.unsealed(wrong, "x")
