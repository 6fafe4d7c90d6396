"""The oracle against cases worked out by hand: it judges the join, so it is judged first."""

from __future__ import annotations

import json

import pyarrow as pa

from tests.support import PROJECT
from tests.support import join_oracle as oracle

WINDOW = 100
PAST = oracle.BEFORE_ALL


def run(shown: list[tuple], acted: list[tuple], pi: float = 1.0) -> oracle.Expected:
    """`shown`: (seq, id, ts, w); `acted`: (seq, id, action, ts, w)."""
    names = ("seq", "impression_id", "action", "ts_ms", "w_ms")
    types = (pa.int64(), pa.string(), pa.string(), pa.int64(), pa.int64())
    actions = pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in acted], pa.schema(zip(names, types, strict=True))
    )
    names = ("seq", "impression_id", "ts_ms", "w_ms")
    impressions = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in shown])
    return oracle.join(impressions, actions, tasks=("click", "like"), window_ms=WINDOW, pi=pi, salt="s")


def test_each_verdict() -> None:
    got = run(
        [(0, "a", 5, PAST), (1, "a", 5, PAST), (9, "a", 5, 105), (10, "b", 50, 50), (11, "c", 51, 50)],
        [
            (2, "a", "click", 5, PAST),
            (3, "a", "click", 7, PAST),
            (4, "a", "like", 4, PAST),
            (5, "a", "like", 106, PAST),
            (6, "a", "like", 105, PAST),
            (7, "a", "like", 20, 105),
            (8, "b", "like", 60, 50),
            (12, "c", "like", 60, 110),
        ],
    )
    assert got.pairs == {("a", 0, 1), ("a", 1, 1), ("c", 0, 0), ("c", 1, 1)}
    assert got.late == {5, 7, 8, 9, 10}
    assert got.dead == {4}
    assert got.duplicates == 2
    assert got.sampled_out == set()


def test_an_action_may_be_sent_first() -> None:
    got = run([(1, "a", 5, PAST)], [(0, "a", "click", 9, PAST)])
    assert got.pairs == {("a", 0, 1), ("a", 1, 0)}


def test_sampling_is_one_draw_an_impression() -> None:
    got = run([(n, f"i{n}", 5, PAST) for n in range(400)], [(1000, "i3", "click", 9, PAST)], pi=0.25)
    kept = {i for i, _, label in got.pairs if label == 0}
    assert {i for i, _ in got.sampled_out} & kept == set()
    assert 60 < len(kept) < 140
    assert ("i3", 0, 1) in got.pairs
    assert len(got.pairs) + len(got.sampled_out) == 800


def test_its_numbers_are_those_of_the_shared_vectors() -> None:
    vectors = json.loads((PROJECT / "tests/vectors" / "hash.json").read_text())
    for one in vectors["fnv1a64"]:
        assert oracle.fnv1a64(one["text"].encode()) == int(one["value"])
    for one in vectors["draw"]:
        assert oracle.draw(one["salt"], one["id"]) == one["u"]
    for one in vectors["sum"]:
        pairs = {(pair["id"], pair["task"], pair["label"]) for pair in one["learned"]}
        if len(pairs) == one["count"]:
            assert oracle.Expected(pairs, set(), set(), set(), 0).learned == (one["count"], int(one["sum"]))
