"""Rare ids with short rows, counted and promoted: against a brute force in NumPy, killed, expired and served."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from delta_log.changes import read_changes
from delta_log.compaction import compact
from delta_log.files import read_removed, read_rows
from delta_log.log import Log
from delta_log.verification import verify
from delta_log.writer import Writer
from serving.client import inputs
from serving.export import state_at
from serving.graph import Content, Served
from serving.sync.push import chunks
from streaming.declaration import Declaration, Feature, Policy
from streaming.example import Batch, Ragged, batches
from streaming.source import load
from tests.support.batches import batch_of
from tests.support.states import everything
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.models.model import Context
from training.models.model import load as load_model

SMALL = Declaration(
    "small",
    (Feature("user", "id"), Feature("item", "id", table="clip"), Feature("history", "ids", table="clip")),
    ("click", "like"),
    "click",
    60_000,
)
MODEL = "deepfm?dim=3&hidden=4&row_scale=0.5&sizes=clip:2@9,user:1"
SOURCE = "simulator?seed=5&minutes=5"
SIMULATOR = load(SOURCE)
SIZED = "deepfm?dim=3&hidden=4&sizes=clip:1@6,viewer:2@3,maker:1"


def a_batch(n: int, seed: int) -> Batch:
    """Few ids are frequent, and many rare."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 3, n)
    history = Ragged(rng.zipf(1.5, lengths.sum()) % 40, np.concatenate([[0], np.cumsum(lengths)]))
    features = {"user": rng.integers(0, 9, n), "item": rng.zipf(1.5, n) % 40, "history": history}
    return batch_of(features, rng.integers(0, 2, (n, 2)), rng.integers(0, 2, (n, 2)))


class BruteForce:
    """Every id has one list of numbers, which becomes longer at its ninth sight. Adagrad is written out in float64."""

    def __init__(self, fresh: Learner) -> None:
        self.fresh, self.model = fresh, load_model(MODEL, SMALL)
        self.rows: dict[str, dict[int, np.ndarray]] = {"user": {}, "clip": {}}  # [linear, vector]
        self.sums: dict[str, dict[int, np.ndarray]] = {"user": {}, "clip": {}}
        self.seen = Counter[int]()  # of clips
        self.dense_sums = {name: np.full(w.variable.shape, 1e-6) for name, w in self.model.dense.items()}

    def step(self, batch: Batch) -> None:
        history = np.split(batch.features["history"].values, batch.features["history"].row_splits[1:-1])  # type: ignore[union-attr]
        of_feature = {name: [[int(i)] for i in batch.features[name]] for name in ("user", "item")}
        of_feature["history"] = [list(map(int, ids)) for ids in history]
        table_of = {"user": "user", "item": "clip", "history": "clip"}
        for name, lists in of_feature.items():
            for i in sum(lists, []):
                self._insert(table_of[name], i)
        places = {table: {i: k for k, i in enumerate(rows)} for table, rows in self.rows.items()}
        long = {t: np.array([self._long(t, row) for row in rows.values()]) for t, rows in self.rows.items()}
        means = {}
        for name, lists in of_feature.items():
            means[name] = np.zeros((batch.size, len(long[table_of[name]])), np.float32)
            for k, ids in enumerate(lists):
                for i in ids:
                    means[name][k, places[table_of[name]][i]] += 1 / len(ids)
        watched = {t: tf.constant(x, tf.float32) for t, x in long.items()}
        dense = {name: weight.variable for name, weight in self.model.dense.items() if "projection" not in name}
        with tf.GradientTape() as tape:
            tape.watch(watched)
            rows = {name: means[name] @ watched[table_of[name]] for name in of_feature}
            outputs = self.model.outputs(rows, np.zeros((batch.size, 0), "f4"), Context(batch.size))
            loss = self.model.loss(outputs, batch.labels, batch.weights, batch.pi.astype("f4"), 64)
        of_rows, of_dense = tape.gradient(loss, [watched, dense])
        steps = {name: np.asarray(gradient, np.float64) for name, gradient in of_dense.items()}
        for table, rows in self.rows.items():
            p = self.model.dense[f"{table}_projection"].variable.numpy().astype(np.float64)
            steps[f"{table}_projection"] = np.zeros_like(p)
            for (i, row), g in zip(rows.items(), np.asarray(of_rows[table], np.float64), strict=True):
                if len(row) < 4:
                    steps[f"{table}_projection"] += np.outer(row[1:], g[1:])
                    g = np.concatenate([g[:1], p @ g[1:]])
                self.sums[table][i] += g * g
                row -= 0.015 * g / np.sqrt(self.sums[table][i] + 1e-7)
        for name, g in steps.items():
            self.dense_sums[name] += g * g
            weight = self.model.dense[name].variable
            weight.assign((weight.numpy() - 0.05 * g / np.sqrt(self.dense_sums[name])).astype(np.float32))
        self.seen.update(sum(of_feature["item"] + of_feature["history"], []))
        for i, row in self.rows["clip"].items():
            if self.seen[i] >= 9 and len(row) < 4:
                self.rows["clip"][i], self.sums["clip"][i] = self._long("clip", row), np.full(4, 1e-7)

    def _insert(self, table: str, i: int) -> None:
        if i not in self.rows[table]:
            stored, dim = ("clip_tail", 3) if table == "clip" else ("user", 2)
            self.rows[table][i] = self.fresh.tables[stored].lookup([i]).numpy()[0, :dim].astype(np.float64)
            self.sums[table][i] = np.full(dim, 1e-7)

    def _long(self, table: str, row: np.ndarray) -> np.ndarray:
        p = self.model.dense[f"{table}_projection"].variable.numpy().astype(np.float64)
        return row if len(row) == 4 else np.concatenate([row[:1], row[1:] @ p])


def contents(learner: Learner, table: str) -> dict[int, np.ndarray]:
    found = learner.tables[table].export_since(0)
    return dict(zip(found.keys.numpy().tolist(), found.rows.numpy(), strict=True))


def test_the_steps_are_those_of_a_brute_force() -> None:
    learner, oracle = (Learner(load_model(MODEL, SMALL), Settings(batch=64)) for _ in range(2))
    brute = BruteForce(oracle)
    moved: list[int] = []
    for seed in range(8):
        moved += learner.train(a_batch(24, seed)).promoted["clip_tail"].tolist()
        brute.step(a_batch(24, seed))
    frequent = {i for i, n in brute.seen.items() if n >= 9}
    long, short, users = (contents(learner, table) for table in ("clip", "clip_tail", "user"))
    assert set(long) == frequent == set(moved) and len(moved) == len(frequent) > 4
    assert set(short) == set(brute.seen) - frequent and len(short) > 10
    for i, row in (long | short).items():
        assert row[-1] == brute.seen[i]
        np.testing.assert_allclose(row[:-1], brute.rows["clip"][i], rtol=1e-3, atol=1e-4)
    for i, row in users.items():
        np.testing.assert_allclose(row, brute.rows["user"][i], rtol=1e-3, atol=1e-4)
    for name, weight in learner.weights.items():
        np.testing.assert_allclose(weight, brute.model.dense[name].variable, rtol=1e-3, atol=1e-4)


def a_state(*policies: Policy) -> State:
    declaration = replace(SIMULATOR.declaration, policies=policies)
    return State(Learner(load_model(SIZED, declaration), Settings(batch=128)), SOURCE)


def some(n: int, size: int = 300) -> list[Batch]:
    return list(islice(batches(SIMULATOR.history(), SIMULATOR.declaration, size), n))


def commit(state: State, writer: Writer) -> None:
    cut = state.cut({}, whole=writer.head is None, digest=True)
    (writer.delta if writer.head else writer.first_base)(cut)
    state.committed(cut)


def weightless(batch: Batch) -> Batch:
    """The same examples with nothing to learn: their ids are seen, and no weight changes."""
    return replace(batch, weights=np.zeros_like(batch.weights))


def test_a_promotion_leaves_the_scores_as_they_are_in_training_and_in_the_served_graph(tmp_path: Path) -> None:
    log, (first, *_), state = Log(tmp_path / "log"), some(1), a_state()
    with Writer(log, log.new_lineage()) as writer:
        state.learn(first)
        for weight in (state.learner.weights[f"{name}_projection"] for name in ("clip", "viewer")):
            weight.assign(np.random.default_rng(0).normal(size=weight.shape).astype(np.float32))
        commit(state, writer)
        before = state.learner.score(first)
        tails = {name: set(contents(state.learner, name)) for name in ("clip_tail", "viewer_tail")}
        state.learn(weightless(first))
        moved = {name: ids - set(contents(state.learner, name)) for name, ids in tails.items()}
        assert all(len(ids) > 5 for ids in moved.values()), moved
        np.testing.assert_allclose(state.learner.score(first), before, rtol=0, atol=1e-6)
        commit(state, writer)
    base, (delta,) = log.chain(writer.lineage)
    for name, ids in moved.items():
        assert set(read_removed(delta)[name].tolist()) == ids
        assert ids <= set(read_rows(delta)[name.removesuffix("_tail")][0].tolist())
    assert verify(log, writer.lineage) == []

    served, changes = a_served(state, state_at(base, []), tmp_path), read_changes(delta)
    asked = inputs([{n: c[k] for n, c in columns(first).items()} for k in range(40)], SIMULATOR.declaration)
    asked = {name: tf.constant(value) for name, value in asked.items()}
    then = served.predict(**asked)
    (rows,) = chunks(changes.tables)
    for part in ({n: v[:0] if n.endswith("_removed") else v for n, v in rows.items()}, rows):  # both rows, then one
        chunk = {"chunk": np.int64(0), "chunks": np.int64(1 + (part is not rows)), "dense_seq": np.int64(0)}
        served.apply_delta(**call(delta, part | chunk | {"learned_until_ms": np.int64(0)}))
        now = served.predict(**asked)
        for task in SIMULATOR.declaration.tasks:
            np.testing.assert_allclose(now[task], then[task], rtol=0, atol=1e-6)
    assert now["seq"].numpy().tolist() == [1] * 40
    assert {name: int(value) for name, value in served.digest().items()} == {
        name: int(value) for name, value in delta.digest.items()
    }


def a_served(state: State, at: Any, folder: Path) -> Served:
    (folder / "journal.bin").touch()
    (folder / "token").write_text("secret")
    content = Content(at.lineage, at.to, 0, {n: (t.keys, t.rows) for n, t in at.tables.items()}, at.dense_seq)
    model = load_model(SIZED, SIMULATOR.declaration)
    for name, value in at.dense.items():
        model.dense[name].variable.assign(value)
    served = Served(model, content, folder)
    paths = tf.constant([str(folder / name) for name in ("journal.bin", "token")])
    handle = served.paths.resource_handle  # type: ignore[union-attr]
    tf.raw_ops.LookupTableInsertV2(table_handle=handle, keys=tf.constant([0, 1], tf.int64), values=paths)
    return served


def call(delta: Any, values: dict[str, Any]) -> dict[str, Any]:
    header = {"lineage": delta.lineage, "seq": np.int64(delta.seq), "token": "secret"}
    return {name: tf.constant(value) for name, value in (header | values).items()}


def columns(batch: Batch) -> dict[str, Any]:
    return {
        name: np.split(c.values, c.row_splits[1:-1]) if isinstance(c, Ragged) else c
        for name, c in batch.features.items()
    }


def test_a_restored_state_promotes_as_one_that_never_stopped(tmp_path: Path) -> None:
    log, history, straight = Log(tmp_path), some(7), a_state()
    with Writer(log, log.new_lineage()) as writer:
        commit(straight, writer)
        for k, batch in enumerate(history[:5]):
            straight.learn(batch)
            if k == 2:
                straight.failed(straight.cut({}))
            elif k < 4:
                commit(straight, writer)
    deltas = log.chain(writer.lineage)[1]
    assert all(len(read_removed(delta)["clip_tail"]) for delta in deltas[1:])
    from_deltas, from_base = a_state(), a_state()
    from_deltas.restore(log, writer.lineage)
    with Writer(log, writer.lineage) as writer:
        compact(log, writer)
        writer.prune(1)
    from_base.restore(log, writer.lineage)
    for resumed in (from_deltas, from_base):
        resumed.learn(history[4])  # it was learned, but not committed
        assert everything(resumed) == everything(straight)
        for batch in history[5:]:
            resumed.learn(batch)
    assert everything(from_deltas) == everything(from_base) != everything(straight)
    assert verify(log, writer.lineage) == []


def test_an_id_is_counted_from_its_admission_and_begins_anew_when_its_row_has_expired() -> None:
    policies = Policy("viewer", admit_after=2), Policy("clip", expire_ms=30_000)
    state, seen = a_state(*policies), Counter[int]()
    state.cut({}, whole=True)
    history = some(1, 100)[0]
    for k in range(0, 100, 10):
        batch = history.slice(k, k + 10)
        state.learn(batch)
        seen.update(batch.features["viewer"].tolist())  # type: ignore[union-attr]
    long, short = (contents(state.learner, name) for name in ("viewer", "viewer_tail"))
    assert set(long) | set(short) == {i for i, n in seen.items() if n >= 2} and len(long) > 0
    frequent = set(contents(state.learner, "clip"))
    assert len(frequent) > 0
    state.newest_event_ms += 60_000
    state.expiry.ended(state.tick(), int(history.event_ms.max()))
    state.expiry.begin(int(history.event_ms.max()) + 60_000)
    assert state.expiry.end() > len(frequent)
    assert frequent <= set(state.expiry.tombstones["clip"].tolist())
    state.learn(weightless(history.slice(0, 1)))
    again = int(history.features["item" if "item" in history.features else "clip"][0])  # type: ignore[call-overload]
    assert again in contents(state.learner, "clip_tail") and again not in contents(state.learner, "clip")
