"""Examples decoded by column: what each odd line becomes, and that it costs its neighbours nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.declaration import INT64_MAX, INT64_MIN, Declaration, Feature
from streaming.example import Ragged, batches, concat, decode, from_exposures
from streaming.source import Exposure

DECLARATION = Declaration(
    "d",
    (
        Feature("user", "id", default=-5),
        Feature("tags", "ids", default=(8, 9)),
        Feature("seen", "ids"),
        Feature("price", "number", default=0.25),
    ),
    ("click", "like"),
    "click",
    1000,
)


def line(**fields) -> bytes:
    whole = {
        "v": 2, "kind": "positive", "impression_id": "i", "user_id": 1, "item_id": 2, "ts_ms": 5, "event_ms": 6,
        "written_ms": 7, "lineage": "l", "seq": 3, "pi": 0.5,
        "labels": [1, 0], "weights": [1, 0], "values": [2.5, None],
        "request_id": "r", "position": 4,
        "features": {"user": 4, "tags": [1], "seen": [], "price": 1.5}, "scores": {"click": 0.25},
    } | fields  # fmt: skip
    return json.dumps({k: v for k, v in whole.items() if v is not ...}).encode()


GOOD = line()
ODD = {
    b"": "empty",
    b"null": "no JSON object",
    b"[1]": "no JSON object",
    b"7": "no JSON object",
    b"\xff\xfe": "no JSON object",
    GOOD[:-9]: "no JSON object",
    GOOD[:-9] + b"}": "JSON parse error",
    GOOD + GOOD: "more than one JSON value",
    b"{} null {}": "more than one JSON value",
    GOOD.replace(b'"l"', b'"\xff"'): "UTF8",
    line(v=1): "v is not 2",
    line(kind="both"): "kind is not",
    line(impression_id=...): "impression_id is missing",
    line(ts_ms=...): "ts_ms is missing",
    line(ts_ms=1.5): "couldn't parse:1.5",
    line(ts_ms="5"): "Column(/ts_ms) changed",
    line(user_id=2**63): "couldn't parse:9223372036854775808",
    line(pi=0): "pi is not in (0, 1]",
    line(pi=1.1): "pi is not in (0, 1]",
    line(pi=...): "pi is not in (0, 1]",
    line(labels=[1]): "weights: not as many numbers as labels",
    line(labels=[1, 0, 0], weights=[1, 0, 0], values=[1, 2, 3]): "labels: not 1 to 2 numbers",
    line(labels=[], weights=[], values=[]): "labels: not 1 to 2 numbers",
    line(labels=...): "labels: not 1 to 2 numbers",
    line(labels=[1, 2]): "labels: a value out of range",
    line(labels=[1, None]): "labels: a value out of range",
    line(values=[1]): "values: not as many numbers as labels",
    line(values=...): "values: not as many numbers as labels",
    line(values=[1, "x"]): "changed from number to string",
    line(weights=[1, -1]): "weights: a value out of range",
    line(weights=[1, float("nan")]): "weights: a value out of range",
    line(features={"user": INT64_MIN}): "feature user is a reserved id",
    line(features={"tags": [1, INT64_MIN + 1]}): "feature tags holds null or a reserved id",
    line(features={"seen": [None]}): "feature seen holds null or a reserved id",
    line(features={"price": float("inf")}): "feature price is not finite",
    line(features={"price": 3.5e38}): "feature price is not finite",
    line(weights=[1, 3.5e38]): "weights: a value out of range",
    line(ts_ms=-1): "ts_ms is out of range, allowed is 0 to 253402300799999",
    line(event_ms=2**62): "event_ms is out of range",
    line(features={"user": "7"}): "changed from number to string",
    line(features=[1]): "changed from object to array",
    b'{"heartbeat_ms": 5, "subtask": 2, "subtasks": 2}': "progress of subtask 2 of 2",
    b'{"heartbeat_ms": 5}': "progress of subtask None of None",
    b'{"heartbeat_ms": 5, "subtask": 0, "subtasks": 200000000}': "of 200000000, allowed are up to 64",
}


@pytest.mark.parametrize(("odd", "reason"), ODD.items(), ids=[str(k) for k in range(len(ODD))])
def test_an_odd_line_is_named_and_its_neighbours_are_learned(odd, reason):
    for lines, place in (([odd], 0), ([GOOD, odd, GOOD], 1)):
        batch = decode(lines, DECLARATION)
        assert batch.size == len(lines) - 1 and batch.line.tolist() == [k for k in range(len(lines)) if k != place]
        assert [k for k, _ in batch.bad] == [place] and reason in batch.bad[0][1]


def test_all_odd_lines_at_once():
    lines = [text for odd in ODD for text in (odd, GOOD)]
    batch = decode(lines, DECLARATION)
    assert batch.line.tolist() == list(range(1, len(lines), 2))
    assert [k for k, _ in batch.bad] == list(range(0, len(lines), 2))


def test_extremes_are_learned_as_declared():
    ids = [INT64_MAX, -1, 0, INT64_MIN + 2]
    batch = decode([line(features={"user": i, "tags": [i], "price": 3}) for i in ids], DECLARATION)
    assert batch.features["user"].tolist() == ids and batch.features["tags"].values.tolist() == ids
    assert batch.bad == [] and batch.features["price"].dtype == np.float32


def test_absent_is_the_default_and_extra_is_ignored():
    lines = [line(features={}), line(features=...), line(features={"tags": None, "x": {"y": [1]}}, z=[{}], scores=...)]
    batch = decode([*lines, line(features={"tags": []}, lineage=..., seq=...)], DECLARATION)
    assert batch.size == 4 and batch.features["user"].tolist() == [-5] * 4
    assert batch.features["tags"].values.tolist() == [8, 9] * 3
    assert batch.features["tags"].row_splits.tolist() == [0, 2, 4, 6, 6]
    assert batch.features["seen"].row_splits.tolist() == [0] * 5
    assert batch.features["price"].tolist() == [0.25] * 4
    assert batch.lineage.to_pylist() == ["l", "l", "l", ""] and batch.seq.tolist() == [3, 3, 3, -1]
    assert np.isnan(batch.scores[2]).all() and batch.scores[0, 0] == 0.25 and np.isnan(batch.scores[0, 1])


def test_a_line_from_before_the_source_grew_has_no_weight_for_the_new_tasks():
    old = line(labels=[1], weights=[1], values=[2.5], features={"user": 4})
    batch = decode([old, line(), old], DECLARATION)
    assert batch.bad == [] and batch.labels.tolist() == [[1, 0]] * 3 and batch.weights.tolist() == [[1, 0]] * 3
    assert batch.values[:, 0].tolist() == [2.5] * 3 and np.isnan(batch.values[:, 1]).all()
    assert batch.features["price"].tolist() == [0.25, 1.5, 0.25]


def test_position_request_and_values_are_carried():
    batch = decode([line(), line(position=..., request_id=..., values=[None, None])], DECLARATION)
    assert batch.position.tolist() == [4, 0] and batch.request_id.to_pylist() == ["r", ""]
    assert batch.values[0, 0] == 2.5 and np.isnan(batch.values[0, 1]) and np.isnan(batch.values[1]).all()


def test_line_feeds_inside_an_object_are_white_space():
    pretty = json.dumps(json.loads(GOOD), indent=2).encode()
    assert decode([pretty, GOOD, b" " + GOOD + b"\r\n"], DECLARATION).size == 3


def test_progress_is_apart_and_keeps_its_place():
    beat = b'{"heartbeat_ms": 9, "subtask": 1, "subtasks": 2}'
    batch = decode([beat, GOOD, beat], DECLARATION)
    assert batch.progress == [(1, 2, 9), (1, 2, 9)] and batch.progress_line == [0, 2] and batch.line.tolist() == [1]


def test_nothing():
    batch = decode([], DECLARATION)
    assert batch.size == 0 and batch.labels.shape == (0, 2) and batch.features["tags"].row_splits.tolist() == [0]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([GOOD, *ODD]) | st.just(b'{"heartbeat_ms":'), max_size=12))
def test_no_bytes_stop_it(lines):
    batch = decode(lines, DECLARATION)
    assert batch.size == lines.count(GOOD)
    assert sorted([*batch.line, *(k for k, _ in batch.bad), *batch.progress_line]) == list(range(len(lines)))


ROWS = st.lists(st.tuples(st.integers(INT64_MIN + 2, INT64_MAX), st.lists(st.integers(-9, 9), max_size=4)), min_size=1)


@settings(deadline=None)
@given(ROWS, st.data())
def test_take_slice_and_concat_move_whole_rows(rows, data):
    batch = decode([line(impression_id=f"i{u}", features={"user": u, "seen": s}) for u, s in rows], DECLARATION)
    order = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    taken = batch.take(np.array(order, np.int64))
    assert plain(taken) == [rows[k] for k in order]
    cut = data.draw(st.integers(0, len(rows)))
    assert plain(concat([batch.slice(0, cut), batch.slice(cut, len(rows) + 3)])) == rows


def plain(batch):
    seen: Ragged = batch.features["seen"]
    splits = seen.row_splits
    lists = [seen.values[a:b].tolist() for a, b in zip(splits, splits[1:], strict=False)]
    assert batch.impression_id.to_pylist() == [f"i{u}" for u in batch.features["user"]]
    return list(zip(batch.features["user"].tolist(), lists, strict=True))


def test_history_has_full_labels():
    shown = [
        Exposure("a", 1, 2, 100, {"user": 1, "seen": [3]}, {"click": 100, "like": 1100}),
        Exposure("b", 1, 2, 100, {"price": 2.0}, {"click": 1101, "like": 99, "other": 100}),
        Exposure("c", 1, 2, 100, {}, {}),
    ]
    batch = from_exposures(shown, DECLARATION)
    # Both ends of the window count; one past it, one before the exposure and a foreign action do not.
    assert batch.labels.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert (batch.weights == 1).all() and (batch.pi == 1).all() and batch.event_ms.tolist() == [1100] * 3
    assert batch.features["tags"].values.tolist() == [8, 9] * 3 and batch.features["user"].tolist() == [1, -5, -5]
    assert [b.size for b in batches(iter(shown), DECLARATION, 2)] == [2, 1]
