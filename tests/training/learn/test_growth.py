"""A lineage continues under a declaration that grew: the same scores, rows and counts, and new weights beside them."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from delta_log.files import TableRows
from delta_log.log import Log
from delta_log.manifest import LogError
from delta_log.verification import verify
from delta_log.writer import Writer
from streaming.declaration import Declaration, Feature
from streaming.example import Batch, batches
from streaming.source import load
from training.cuckoo import FTRL, Adam, Constant, Normal, Segment, Zeros
from training.learn.batch_pass import begin
from training.learn.growth import continued, grown_rows
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.models.model import load as load_model

SOURCE = "simulator?seed=5&minutes=5"
SIMULATOR = load(SOURCE)
OLD = SIMULATOR.declaration
MORE = (Feature("hits", "number", default=0.5), Feature("brand", "id", default=9), Feature("likes", "ids", "clip"))
NEW = replace(OLD, features=(*MORE, *OLD.features), tasks=(*OLD.tasks, "share"))
POSITIONS = {"cluster": "c", "topic": "examples", "topic_id": "t", "offsets": {"0": 600, "1": 7}}


def some(declaration: Declaration) -> list[Batch]:
    return list(islice(batches(SIMULATOR.history(), declaration, 300), 4))


def a_state(declaration: Declaration, model: str) -> State:
    return State(Learner(load_model(model, declaration), Settings(batch=128)), SOURCE)


def a_lineage(log: Log, model: str) -> State:
    """A base and a delta of the old declaration, served."""
    state, history = a_state(OLD, model), some(OLD)
    state.learn(history[0])
    base = begin(state, log, {})
    with Writer(log, base.lineage) as writer:
        state.learn(history[1])
        cut = state.cut(POSITIONS)
        writer.delta(cut)
        state.committed(cut)
    log.serve(base.lineage)
    return state


def restored(log: Log, declaration: Declaration, model: str) -> State:
    state = a_state(declaration, model)
    state.restore(log, log.serving() or "")
    return state


@pytest.mark.parametrize("model", ["deepfm?dim=4&hidden=16x8", "logistic"])
def test_the_new_lineage_scores_as_the_old_one_and_learns_on(tmp_path: Path, model: str) -> None:
    log = Log(tmp_path)
    old = a_lineage(log, model)
    new = NEW
    lineage = continued(log, log.serving() or "", SOURCE, new, "", 5)
    assert log.serving() == lineage and continued(log, lineage, SOURCE, new, "", 5) == lineage
    assert verify(log, lineage) == []

    state = restored(log, new, model)
    assert (state.positions, state.learned, state.learned_until_ms) == (POSITIONS, old.learned, old.learned_until_ms)
    assert set(state.expiry.tick_times.values()) == set(old.expiry.tick_times.values())
    for name in OLD.tables:
        a, b = (t.learner.tables[name].export_since(0) for t in (old, state))
        order, other = np.argsort(a.keys), np.argsort(b.keys)
        assert np.array_equal(a.keys.numpy()[order], b.keys.numpy()[other])
        assert np.array_equal(a.ticks.numpy()[order], b.ticks.numpy()[other])
        if model != "logistic":  # a row of it has a number a task
            assert np.array_equal(a.rows.numpy()[order], b.rows.numpy()[other])
            assert np.array_equal(a.slots.numpy()[order], b.slots.numpy()[other])
    tested, tested_new = some(OLD)[2], some(new)[2]
    before, after = old.learner.score(tested), state.learner.score(tested_new)
    assert np.abs(before).max() > 0.01
    np.testing.assert_allclose(after[:, : len(OLD.tasks)], before, rtol=1e-5, atol=1e-6)

    state.learn(tested_new)
    assert not np.allclose(state.learner.score(tested_new)[:, : len(OLD.tasks)], before)
    assert state.learner.tables["brand"].stats()["size"] == 1
    with Writer(log, lineage) as writer:
        writer.delta(state.cut(POSITIONS))
    assert verify(log, lineage) == []


def test_what_is_no_growth_is_refused_by_name(tmp_path: Path) -> None:
    log = Log(tmp_path)
    a_lineage(log, "logistic")
    changed = replace(OLD, features=OLD.features[:-1])
    with pytest.raises(
        InputError, match=f"feature {OLD.features[-1].name} is removed: allowed are new features, .*new li"
    ):
        continued(log, log.serving() or "", SOURCE, changed, "", 5)
    assert len(log.lineages()) == 1


def test_a_row_of_a_number_a_task_gets_the_new_ones_number() -> None:
    keys, ticks = np.array([7, 8]), np.array([1, 2], np.uint32)
    rows, slots = np.array([[1, 2], [3, 4]], "f4"), np.array([[5, 6, 7, 8], [9, 10, 11, 12]], "f4")
    table = TableRows(keys, rows, slots, ticks, keys[:0])
    of = Segment(2, FTRL(start=0.5), Zeros())
    grown = grown_rows(table, [of], [replace(of, dim=3)])
    assert grown is not None
    assert grown.rows.tolist() == [[1, 2, 0], [3, 4, 0]]
    assert grown.slots.tolist() == [[5, 6, 0.5, 7, 8, 0], [9, 10, 0.5, 11, 12, 0]]
    adam = TableRows(keys, rows, np.array([[1, 2, 3, 4, 9], [5, 6, 7, 8, 9]], "f4"), ticks, keys[:0])
    grown = grown_rows(adam, [Segment(2, Adam(), Zeros())], [Segment(3, Adam(), Constant(6))])
    assert grown is not None and grown.rows.tolist() == [[1, 2, 6], [3, 4, 6]]
    assert grown.slots.tolist() == [[1, 2, 0, 3, 4, 0, 9], [5, 6, 0, 7, 8, 0, 9]]
    for other in ([replace(of, dim=1)], [Segment(3, Adam(), Zeros())], [Segment(3, FTRL(), Normal())], [of, of]):
        assert grown_rows(table, [of], other) is None


def test_another_model_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path)
    a_lineage(log, "logistic")
    with pytest.raises(LogError, match="model is logistic.*, the trainer's is deepfm.*: begin a new lineage"):
        continued(log, log.serving() or "", SOURCE, NEW, "deepfm?dim=4&hidden=8", 5)
    assert len(log.lineages()) == 1
