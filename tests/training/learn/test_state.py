"""The state of training: cut, committed, failed, restored; bit for bit, and against plain integers."""

from __future__ import annotations

import gc
import weakref
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from delta_log.files import read_rows
from delta_log.log import Log
from delta_log.manifest import LogError
from delta_log.verification import verify
from delta_log.writer import Writer
from streaming.example import Batch, batches
from streaming.source import load
from tests.support.states import everything
from tests.training.models.test_deepfm import SMALL, a_batch
from training.cuckoo.library import ops
from training.learn.learner import Learner, Settings
from training.learn.state import State, dense_digest, rows_digest
from training.models.model import load as load_model

SOURCE = "simulator?seed=5&minutes=5"
SIMULATOR = load(SOURCE)


def a_state(seed: int = 0) -> State:
    return State(Learner(load_model("deepfm", SIMULATOR.declaration, seed), Settings(batch=128, seed=seed)), SOURCE)


def some(n: int, size: int = 300) -> list[Batch]:
    return list(islice(batches(SIMULATOR.history(), SIMULATOR.declaration, size), n))


def commit(state: State, writer: Writer, offset: int = 0, **options: Any) -> None:
    cut = state.cut({"offsets": {"0": offset}}, whole=writer.head is None, **options)
    (writer.delta if writer.head else writer.first_base)(cut)
    state.committed(cut)


def test_a_restored_state_trains_on_to_the_same_bits(tmp_path: Path) -> None:
    log, history = Log(tmp_path), some(9)
    straight = a_state()
    with Writer(log, log.new_lineage()) as writer:
        commit(straight, writer)
        for k, batch in enumerate(history[:6]):
            straight.learn(batch)
            if k % 2:
                commit(straight, writer, offset=k)
    assert [m.seq for m in log.chain(writer.lineage)[1]] == [1, 2, 3]
    at_cut = everything(straight)
    resumed = a_state()
    last = resumed.restore(log, writer.lineage)
    assert last.seq == 3 and resumed.positions == {"offsets": {"0": 5}}
    assert everything(resumed) == at_cut
    for batch in history[6:]:  # with ids that are new: they begin as they would have
        straight.learn(batch)
        resumed.learn(batch)
    assert everything(resumed) == everything(straight)
    assert resumed.digest() == straight.digest()


def test_a_delta_holds_the_rows_that_changed_and_no_others(tmp_path: Path) -> None:
    log, (first, second) = Log(tmp_path), some(2)
    state = a_state()
    with Writer(log, log.new_lineage()) as writer:
        state.learn(first)
        commit(state, writer)
        state.learn(second)
        commit(state, writer)
        commit(state, writer)
    _, (delta, empty) = log.chain(writer.lineage)
    keys, rows = read_rows(delta)["viewer"]
    assert sorted(keys.tolist()) == sorted(set(second.features["viewer"].tolist()))  # type: ignore[union-attr]
    np.testing.assert_array_equal(rows, state.learner.tables["viewer"].find(keys).numpy())
    assert all(info.rows == 0 for info in empty.tables.values())
    assert delta.metrics["examples"] == second.size and empty.metrics["examples"] == 0
    assert verify(log, writer.lineage) == []


def test_what_a_failed_cut_held_is_in_the_next_one(tmp_path: Path) -> None:
    log, (first, second) = Log(tmp_path), some(2)
    for batch in (first, second):
        batch.kind = np.full(batch.size, "negative")
        batch.written_ms[:] = 1234
    state = a_state()
    with Writer(log, log.new_lineage()) as writer:
        commit(state, writer)
        state.learn(first)
        lost = state.cut({})
        with pytest.raises(RuntimeError, match="neither committed nor failed"):
            state.cut({})
        state.learn(second)  # training went on while the write failed
        state.failed(lost)
        commit(state, writer)
    _, (delta,) = log.chain(writer.lineage)
    both = set(first.features["viewer"].tolist()) | set(second.features["viewer"].tolist())  # type: ignore[union-attr]
    assert set(read_rows(delta)["viewer"][0].tolist()) == both
    assert delta.metrics["examples"] == first.size + second.size
    assert delta.written_ms == {"positive": {}, "negative": {"1230": first.size + second.size}}
    resumed = a_state()
    resumed.restore(log, writer.lineage)
    assert everything(resumed) == everything(state)


def test_a_cut_is_a_copy() -> None:
    first, second = some(2)
    state = a_state()
    state.learn(first)
    cut = state.cut({}, whole=True)
    before = {n: t.rows.copy() for n, t in cut.tables.items()}, {n: w.value.copy() for n, w in cut.dense.items()}
    state.learn(second)
    for name, table in cut.tables.items():
        np.testing.assert_array_equal(table.rows, before[0][name])
    for name, weight in cut.dense.items():
        np.testing.assert_array_equal(weight.value, before[1][name])


def test_the_learned_sum_is_that_of_plain_integers() -> None:
    """docs/example.md, one pair at a time."""
    mask = 2**64 - 1

    def fnv(text: str) -> int:
        value = 0xCBF29CE484222325
        for byte in text.encode():
            value = ((value ^ byte) * 0x100000001B3) & mask
        return value

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    state = State(Learner(load_model("deepfm?dim=3", SMALL), Settings(batch=16)), "small")
    count = total = 0
    for seed in range(3):
        batch = a_batch(50, seed)
        state.learn(batch)
        for i in range(batch.size):
            for task in range(2):
                if batch.weights[i, task] > 0:
                    count += 1
                    pair = mix(2 * task + int(batch.labels[i, task]) + 1)
                    total = (total + mix(fnv(batch.impression_id[i].as_py()) ^ pair)) & mask
    assert state.learned == (count, total) and count > 0


def test_the_digest_is_of_any_order_and_shows_one_bit() -> None:
    rng = np.random.default_rng(0)
    keys, rows = rng.integers(-(2**60), 2**60, 100), rng.normal(size=(100, 5)).astype(np.float32)
    order = rng.permutation(100)
    assert rows_digest(keys, rows) == rows_digest(keys[order], rows[order]) != 0
    flipped = rows.copy()
    flipped.view(np.uint32)[17, 2] ^= 1
    assert rows_digest(keys, flipped) != rows_digest(keys, rows)
    assert rows_digest(keys[:0], rows[:0]) == 0
    assert dense_digest({"a": rows, "b": rows[0]}) == dense_digest({"b": rows[0], "a": rows})
    assert dense_digest({"a": flipped}) != dense_digest({"a": rows}) != dense_digest({"b": rows})


def test_a_dropped_state_frees_its_tables() -> None:
    state = a_state()
    state.learn(some(1)[0])
    handles = [table.resource_handle for table in state.learner.tables.values()]
    learner = weakref.ref(state.learner)
    del state
    gc.collect()
    assert learner() is None
    for handle in handles:
        with pytest.raises(tf.errors.NotFoundError):
            ops().cuckoo_tick(handle)


def test_another_declaration_is_refused(tmp_path: Path) -> None:
    log, state = Log(tmp_path), a_state()
    with Writer(log, log.new_lineage()) as writer:
        commit(state, writer)
    other = State(Learner(load_model("deepfm?dim=3", SMALL), Settings(batch=16)), "small")
    with pytest.raises(LogError, match="begin a new lineage"):
        other.restore(log, writer.lineage)


def test_dense_weights_are_served_on_their_own_schedule_and_a_kill_loses_none_of_them(tmp_path: Path) -> None:
    log, history = Log(tmp_path), some(6)
    straight = State(Learner(load_model("deepfm", SIMULATOR.declaration), Settings(batch=128)), SOURCE, dense_every=3)
    served = []
    with Writer(log, log.new_lineage()) as writer:
        commit(straight, writer)
        for batch in history[:5]:
            straight.learn(batch)
            served.append({name: weight.numpy() for name, weight in straight.learner.weights.items()})
            commit(straight, writer, digest=True)
    base, deltas = log.chain(writer.lineage)
    assert [delta.dense_seq for delta in deltas] == [0, 0, 3, 3, 3]
    assert all("dense.arrow" in delta.files for delta in deltas)
    assert deltas[4].digest["dense"] == str(dense_digest(served[2])) != str(dense_digest(served[4]))
    resumed = State(Learner(load_model("deepfm", SIMULATOR.declaration), Settings(batch=128)), SOURCE, dense_every=3)
    resumed.restore(log, writer.lineage)
    assert everything(resumed) == everything(straight)
    resumed.learn(history[5])
    with Writer(log, writer.lineage) as writer:
        commit(resumed, writer)
        assert writer.head is not None and writer.head.dense_seq == 6
    assert verify(log, writer.lineage) == []


@pytest.mark.parametrize("failed", [False, True])
def test_held_dense_weights_are_in_no_delta(tmp_path: Path, failed: bool) -> None:
    log, (first, second) = Log(tmp_path), some(2)
    state = State(Learner(load_model("deepfm", SIMULATOR.declaration), Settings(batch=128, dense_rate=0)), SOURCE)
    with Writer(log, log.new_lineage()) as writer:
        commit(state, writer)
        for batch in (first, second):
            state.learn(batch)
            if failed:
                state.failed(state.cut({}))
            commit(state, writer, digest=True)
    base, deltas = log.chain(writer.lineage)
    assert [(delta.dense_seq, "dense.arrow" in delta.files) for delta in deltas] == [(0, False)] * 2
    assert deltas[1].digest["dense"] == str(state.digest()["dense"])
    resumed = a_state()
    resumed.restore(log, writer.lineage)
    assert everything(resumed) == everything(state)
