"""Admission and expiry as part of the state: cut, committed, restored and killed, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from delta_log.compaction import compact
from delta_log.files import read_admission, read_removed, read_rows
from delta_log.log import Log
from delta_log.verification import explain, verify
from delta_log.writer import Writer
from streaming.declaration import Policy
from streaming.example import Batch, batches
from streaming.source import load
from tests.support import PROJECT
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.models.model import load as load_model

SOURCE = "simulator?seed=5&minutes=5"
SIMULATOR = load(SOURCE)
BY_COUNT = Policy("viewer", admit_after=3, pending_ids=4000)
BY_CHANCE = Policy("clip", admit_probability=0.2)


def a_state(*policies: Policy) -> State:
    declaration = replace(SIMULATOR.declaration, policies=policies)
    return State(Learner(load_model("deepfm", declaration), Settings(batch=128)), SOURCE)


def some(n: int, size: int = 300) -> list[Batch]:
    return list(islice(batches(SIMULATOR.history(), SIMULATOR.declaration, size), n))


def everything(state: State) -> dict[str, Any]:
    """All bits that later training depends on, the filters and the clock included."""
    found: dict[str, Any] = {"learned": state.learned, "tick": state.tick()}
    for name, table in state.learner.tables.items():
        rows = table.export_since(0)
        order = np.argsort(rows.keys.numpy())
        found[name] = [x.numpy()[order].tobytes() for x in rows]
        found[f"filter of {name}"] = [x.numpy().tobytes() for x in table.export_admission(0)]
    for name, weight in state.learner.weights.items():
        found[f"dense {name}"] = weight.numpy().tobytes(), state.learner.slots[name].numpy().tobytes()
    return found


def commit(state: State, writer: Writer) -> None:
    cut = state.cut({}, whole=writer.head is None)
    (writer.delta if writer.head else writer.first_base)(cut)
    state.committed(cut)


def test_a_row_comes_with_the_third_example_that_has_the_id() -> None:
    state, seen, clips = a_state(BY_COUNT), Counter[int](), set[int]()
    table = state.learner.tables["viewer"]
    for batch in some(4, 100):
        state.learn(batch)
        seen.update(batch.features["viewer"].tolist())  # type: ignore[union-attr]
        clips |= set(batch.features["clip"].tolist())  # type: ignore[union-attr]
        assert sorted(keys_of(table)) == sorted(i for i, n in seen.items() if n >= 3)
    refused = np.array([i for i, n in seen.items() if n < 3])
    assert len(refused) > 10 and not table.find(refused).numpy().any()  # their gradients went nowhere
    assert set(keys_of(state.learner.tables["clip"])) == clips  # a policy is a table's


def keys_of(table: Any) -> list[int]:
    return table.export_since(0).keys.numpy().tolist()  # type: ignore[no-any-return]


def test_a_restored_filter_decides_as_one_that_never_stopped(tmp_path: Path) -> None:
    log, history = Log(tmp_path), some(9, 100)
    straight = a_state(BY_COUNT, BY_CHANCE)
    with Writer(log, log.new_lineage()) as writer:
        commit(straight, writer)
        for k, batch in enumerate(history[:6]):
            straight.learn(batch)
            if k % 2:
                commit(straight, writer)
    at_cut = everything(straight)
    assert all(at_cut[f"filter of {name}"][0] for name in ("viewer", "clip"))
    from_deltas, from_base = a_state(BY_COUNT, BY_CHANCE), a_state(BY_COUNT, BY_CHANCE)
    from_deltas.restore(log, writer.lineage)
    with Writer(log, writer.lineage) as writer:
        compact(log, writer)
        writer.prune(1)
    from_base.restore(log, writer.lineage)
    for batch in history[6:]:
        straight.learn(batch)
    for resumed in (from_deltas, from_base):
        assert everything(resumed) == at_cut
        for batch in history[6:]:
            resumed.learn(batch)
        assert everything(resumed) == everything(straight)
    assert everything(straight)["viewer"] != at_cut["viewer"]
    assert verify(log, writer.lineage) == []


def test_a_delta_has_the_lines_that_changed_and_a_failed_one_leaves_them_for_the_next(tmp_path: Path) -> None:
    log, (first, second, third) = Log(tmp_path), some(3, 40)
    state = a_state(BY_COUNT)
    table = state.learner.tables["viewer"]
    with Writer(log, log.new_lineage()) as writer:
        state.learn(first)
        commit(state, writer)
        of_base = dict_of(table)
        state.learn(second)
        state.failed(state.cut({}))
        state.learn(third)
        commit(state, writer)
        commit(state, writer)
    base, (delta, empty) = log.chain(writer.lineage)
    changed = read_admission(delta)["viewer"]
    now = dict_of(table)
    assert {p: line.tobytes() for p, line in zip(changed.places.tolist(), changed.lines, strict=True)} == {
        p: line for p, line in now.items() if of_base.get(p) != line
    }
    assert 0 < delta.tables["viewer"].lines < len(now)
    assert delta.tables["viewer"].admission == "count 16x4000" and delta.tables["clip"].admission == ""
    assert [t.lines for t in empty.tables.values()] == [0] * len(empty.tables)
    assert explain(log, writer.lineage, 1)["tables"]["viewer"]["lines"] == len(changed.places)
    assert base.tables["viewer"].lines == len(of_base)


def dict_of(table: Any) -> dict[int, bytes]:
    places, lines = (x.numpy() for x in table.export_admission(0))
    return {p: line.tobytes() for p, line in zip(places.tolist(), lines, strict=True)}


def test_another_policy_goes_on_with_the_same_rows_and_a_filter_of_its_own(tmp_path: Path) -> None:
    log, (first, second) = Log(tmp_path), some(2, 100)
    state = a_state(BY_COUNT)
    with Writer(log, log.new_lineage()) as writer:
        state.learn(first)
        commit(state, writer)
        rows, lines = keys_of(state.learner.tables["viewer"]), dict_of(state.learner.tables["viewer"])
        later = a_state(replace(BY_COUNT, admit_after=5))  # the same filter: who was seen before counts on
        later.restore(log, writer.lineage)
        assert dict_of(later.learner.tables["viewer"]) == lines
        smaller = a_state(replace(BY_COUNT, pending_ids=800))
        smaller.restore(log, writer.lineage)
        assert (keys_of(smaller.learner.tables["viewer"]), dict_of(smaller.learner.tables["viewer"])) == (rows, {})
        smaller.learn(second)
        commit(smaller, writer)
    again = a_state(replace(BY_COUNT, pending_ids=800))
    again.restore(log, writer.lineage)
    assert everything(again) == everything(smaller)


def expiring(minutes: int) -> Policy:
    return Policy("viewer", expire_ms=minutes * 60_000)


def aged(batch: Batch, event_ms: int) -> Batch:
    """The same examples, at another event time."""
    return replace(batch, event_ms=np.full(batch.size, event_ms))


def ids_of(batch: Batch) -> set[int]:
    return set(batch.features["viewer"].tolist())  # type: ignore[union-attr]


def at(state: State, minute: int, batch: Batch | None = None) -> None:
    if batch is not None:
        state.learn(aged(batch, minute * 60_000))
    state.learned_until_ms = minute * 60_000


def test_rows_expire_leave_the_log_and_come_back_only_by_being_seen(tmp_path: Path) -> None:
    log, (old, new, later) = Log(tmp_path), some(3, 60)
    gone = ids_of(old) - ids_of(new)
    back = gone & ids_of(later)
    assert back and gone - back
    state = a_state(expiring(10))
    table = state.learner.tables["viewer"]
    with Writer(log, log.new_lineage()) as writer:
        commit(state, writer)
        at(state, 0, old)
        commit(state, writer)
        at(state, 5, new)
        commit(state, writer)
        clips = state.learner.tables["clip"].stats()["size"]
        at(state, 9)
        state.expire()
        assert state.expiry.end() == 0
        at(state, 10)
        state.expire()
        state.expiry.end()
        assert set(keys_of(table)) == ids_of(new)
        state.learn(aged(later, 600_000))  # some are inserted again before the cut
        lost = state.cut({})
        state.failed(lost)  # the tombstones stay
        state.learn(aged(later, 600_000))
        commit(state, writer)
        commit(state, writer)
    _, deltas = log.chain(writer.lineage)
    removed, rows = read_removed(deltas[2])["viewer"].tolist(), read_rows(deltas[2])["viewer"][0].tolist()
    assert set(removed) == gone - ids_of(later) and back <= set(rows)
    assert deltas[2].tables["viewer"].total == len(ids_of(new) | ids_of(later)) == int(table.stats()["size"])
    assert deltas[2].tables["clip"].removed == 0 and state.learner.tables["clip"].stats()["size"] >= clips
    assert [i.removed for i in deltas[3].tables.values()] == [0] * len(deltas[3].tables)
    resumed = a_state(expiring(10))
    resumed.restore(log, writer.lineage)
    assert everything(resumed) == everything(state)
    assert verify(log, writer.lineage) == []


def test_a_restored_state_knows_how_old_its_rows_are(tmp_path: Path) -> None:
    log, parts = Log(tmp_path), some(5, 60)
    state = a_state(expiring(10))
    with Writer(log, log.new_lineage()) as writer:
        commit(state, writer)
        for minute, batch in zip((1, 3, 5, 7, 9), parts, strict=True):
            at(state, minute, batch)
            commit(state, writer)
    left = set().union(*(ids_of(b) for b in parts[2:]))
    for compacted in (False, True):
        evicted = a_state(expiring(10))
        with Writer(log, writer.lineage) as writer:
            if compacted:
                base = compact(log, writer)
                writer.prune(1)
                assert base is not None and len(base.tick_times) == 5
            evicted.restore(log, writer.lineage)
            at(evicted, 14)
            evicted.expire()
            assert evicted.expiry.end() > 0
            assert set(keys_of(evicted.learner.tables["viewer"])) == left
            if compacted:
                commit(evicted, writer)
            # else it is killed: the rows that left are in no manifest, so they come back, and leave again
    resumed = a_state(expiring(10))
    last = resumed.restore(log, writer.lineage)
    assert everything(resumed) == everything(evicted) and last.tables["viewer"].removed > 0


def test_the_history_of_a_base_leaves_as_it_came(tmp_path: Path) -> None:
    """Thirty minutes are learned at once, and ids live for ten. No delta then removes more than two minutes' ids."""
    log, minutes = Log(tmp_path), some(30, 60)
    state = a_state(expiring(10))
    for minute, batch in enumerate(minutes):
        state.learn(aged(batch, minute * 60_000))
    with Writer(log, log.new_lineage()) as writer:
        commit(state, writer)
        assert set(keys_of(state.learner.tables["viewer"])) == set().union(*(ids_of(b) for b in minutes[20:]))
        resumed = a_state(expiring(10))
        resumed.restore(log, writer.lineage)
        for minute in range(30, 40):
            at(resumed, minute)
            resumed.expire()
            commit(resumed, writer)
    removed = [m.tables["viewer"].removed for m in log.chain(writer.lineage)[1]]
    most = max(len(ids_of(a) | ids_of(b)) for a, b in zip(minutes[20:], minutes[21:], strict=False))
    assert sum(removed) > 100 and max(removed) <= most
    assert resumed.learner.tables["viewer"].stats()["size"] == 0 and verify(log, writer.lineage) == []


CHILD = """
import os, sys
from pathlib import Path
from tests.training.learn.test_policies import BY_COUNT, a_state, aged, at, commit, expiring, some
from delta_log.log import Log
from delta_log.writer import Writer
from dataclasses import replace

log, lineage, kill_at = Log(sys.argv[1]), sys.argv[2], int(sys.argv[3])
state = a_state(replace(BY_COUNT, admit_after=2, expire_ms=600_000))
steps = 0
with Writer(log, lineage) as writer:
    state.restore(log, lineage)
    fsync = os.fsync
    def counted(fd):
        global steps
        if steps == kill_at:
            os.kill(os.getpid(), 9)
        steps += 1
        fsync(fd)
    os.fsync = counted
    for minute, batch in zip((12, 14), some(6, 60)[4:]):
        at(state, minute, batch)
        state.expire()
        commit(state, writer)
os._exit(3)
"""


KILLS = (4, 13)  # flushes: within the first of two deltas, within the second


def test_killed_while_it_commits_it_goes_on_to_the_same_state(tmp_path: Path) -> None:
    """A trainer killed at a flush, restored and fed the rest comes to the very state of one that never died."""
    policy = replace(BY_COUNT, admit_after=2, expire_ms=600_000)
    history = some(6, 60)

    def rest(state: State, writer: Writer, done: int) -> None:
        for minute, batch in list(zip((12, 14), history[4:], strict=True))[done:]:
            at(state, minute, batch)
            state.expire()
            commit(state, writer)

    log, straight = Log(tmp_path / "straight"), a_state(policy)
    with Writer(log, log.new_lineage()) as writer:
        commit(straight, writer)
        for minute, batch in zip((1, 3, 5, 7), history[:4], strict=True):
            at(straight, minute, batch)
            commit(straight, writer)
        for kill_at in KILLS:
            shutil.copytree(log.path, tmp_path / str(kill_at))
        rest(straight, writer, 0)
    lineage = writer.lineage
    expected = everything(straight)
    _, deltas = log.chain(lineage)
    assert deltas[-1].tables["viewer"].removed > 0 and deltas[-1].tables["viewer"].lines > 0
    for kill_at in KILLS:
        log = Log(tmp_path / str(kill_at))
        command = [sys.executable, "-c", CHILD, str(log.path), lineage, str(kill_at)]
        code = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, timeout=120).returncode
        assert code == -signal.SIGKILL
        resumed = a_state(policy)
        with Writer(log, lineage) as writer:
            last = resumed.restore(log, lineage)
            rest(resumed, writer, last.seq - 4)
        assert everything(resumed) == expected
        assert verify(log, lineage) == []
