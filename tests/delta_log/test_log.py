"""The delta log against a plain dict, and against everything that may be wrong with its files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from delta_log.compaction import compact
from delta_log.files import (
    Filter,
    TableRows,
    Weight,
    read_admission,
    read_dense,
    read_removed,
    read_rows,
    read_slots,
    read_tables,
)
from delta_log.log import Log
from delta_log.manifest import LogBroken, LogBusy, LogError, Manifest, ModelInfo
from delta_log.verification import explain, listing, verify
from delta_log.writer import Cut, Writer, prune_lineages

MODEL = ModelInfo("deepfm", {"dim": 3})
DIMS = {"user": (3, 3), "item": (5, 10)}
State = dict[str, dict[int, tuple[list[float], list[float], int]]]


class Oracle:
    """Two tables as plain dicts, changed at random: what the log must say of them. Of `item` the admission filter's
    lines, too, under "lines"; at the fifth tick its shape changes, and it begins empty."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tables: State = {name: {} for name in [*DIMS, "lines"]}
        self.dense = {"w": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32)}
        self.tick = 0

    def change(self, rows: int = 40) -> Cut:
        """Write some rows, remove some, and the cut that says so."""
        self.tick += 1
        tables = {}
        for name, (dim, slots) in DIMS.items():
            table = self.tables[name]
            keys = np.unique(self.rng.integers(-60, 60, rows)) * (2**62 // 60)
            gone = np.array([k for k in table if k not in keys.tolist() and self.rng.random() < 0.2], np.int64)
            values = self.rng.normal(size=(len(keys), dim)).astype(np.float32)
            state = self.rng.normal(size=(len(keys), slots)).astype(np.float32)
            for key, value, slot in zip(keys.tolist(), values.tolist(), state.tolist(), strict=True):
                table[key] = value, slot, self.tick
            for key in gone.tolist():
                del table[key]
            tables[name] = TableRows(keys, values, state, np.full(len(keys), self.tick, np.uint32), gone)
        tables["item"] = tables["item"]._replace(admission=self._see())
        self.dense = {n: self.rng.normal(size=w.shape).astype(np.float32) for n, w in self.dense.items()}
        dense = {n: Weight(w, np.repeat(w.ravel(), 2)) for n, w in self.dense.items()}
        totals = {name: len(self.tables[name]) for name in DIMS}
        return Cut(
            source="simulator",
            declaration="d" * 64,
            model=MODEL,
            tables=tables,
            dense=dense,
            totals=totals,
            tick=self.tick,
            tick_times={self.tick: 1000 * self.tick},
            positions={"cluster": "c", "topic": "examples", "topic_id": "t", "offsets": {"0": 10 * self.tick}},
            learned=(self.tick, 2**64 - self.tick),
            learned_until_ms=500 * self.tick,
            written_ms={"positive": {10: 3}, "negative": {}},
            metrics={"auc": 0.5 + self.tick / 100},
        )

    def _see(self) -> Filter:
        """Some lines change."""
        if self.tick == 5:
            self.tables["lines"] = {}
        places = np.sort(self.rng.choice(64, 9, replace=False)).astype(np.uint32)
        lines = self.rng.integers(0, 256, (9, 64)).astype(np.uint8)
        self.tables["lines"].update(as_lines(places, lines))
        return Filter("count 1x512" if self.tick < 5 else "count 2x512", places, lines)

    def whole(self) -> Cut:
        """A base: everything."""
        cut = self.change()
        tables = {}
        for name, (dim, slots) in DIMS.items():
            table = self.tables[name]
            tables[name] = TableRows(
                np.array(list(table), np.int64),
                np.array([v for v, _, _ in table.values()], np.float32).reshape(-1, dim),
                np.array([s for _, s, _ in table.values()], np.float32).reshape(-1, slots),
                np.array([t for _, _, t in table.values()], np.uint32),
                np.empty(0, np.int64),
                cut.tables[name].admission,
            )
        return replace(cut, tables=tables, written_ms={})


def as_lines(places: np.ndarray, lines: np.ndarray) -> dict[int, tuple[list[float], list[float], int]]:
    return {place: (line, [], 0) for place, line in zip(places.tolist(), lines.tolist(), strict=True)}


def replayed(manifests: list[Manifest]) -> State:
    """What a reader holds after a base and its deltas: first the removed keys, then the rows; the filter's lines."""
    state: State = {name: {} for name in [*DIMS, "lines"]}
    shape = ""
    for manifest in manifests:
        rows, slots, removed = read_rows(manifest), read_slots(manifest), read_removed(manifest)
        seen = read_admission(manifest)
        assert seen["user"].shape == "" and not len(seen["user"].places)
        if seen["item"].shape != shape:
            state["lines"], shape = {}, seen["item"].shape
        state["lines"].update(as_lines(seen["item"].places, seen["item"].lines))
        for name in DIMS:
            table = state[name]
            for key in removed[name].tolist():
                del table[key]
            (keys, values), (ticks, state_of) = rows[name], slots[name]
            entries = zip(keys.tolist(), values.tolist(), state_of.tolist(), ticks.tolist(), strict=True)
            table.update({k: (v, s, t) for k, v, s, t in entries})
    return state


def begun(path: Path, deltas: int, seed: int = 7) -> tuple[Log, str, Oracle]:
    """A log with one lineage of a base and some deltas."""
    log, oracle = Log(path), Oracle(seed)
    lineage = log.new_lineage()
    with Writer(log, lineage) as writer:
        writer.first_base(oracle.whole())
        for _ in range(deltas):
            writer.delta(oracle.change())
    return log, lineage, oracle


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 6)
    base, deltas = log.chain(lineage)
    assert [m.seq for m in deltas] == [1, 2, 3, 4, 5, 6]
    assert replayed([base, *deltas]) == oracle.tables
    last = deltas[-1]
    for name, weight in read_dense(last).items():
        np.testing.assert_array_equal(weight.value, oracle.dense[name])
        np.testing.assert_array_equal(weight.slots, np.repeat(oracle.dense[name].ravel(), 2))
    assert {n: t.total for n, t in last.tables.items()} == {n: len(oracle.tables[n]) for n in DIMS}
    assert (last.learned, last.learned_until_ms) == ({"count": 7, "sum": str(2**64 - 7)}, 3500)
    assert last.positions["offsets"] == {"0": 70}
    assert verify(log, lineage) == []


def test_a_writer_resumes_at_the_next_seq(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 2)
    with Writer(log, lineage) as writer:
        assert writer.delta(oracle.change()).seq == 3
        with pytest.raises(LogError, match="has begun already"):
            writer.first_base(Oracle(1).whole())
    base, deltas = log.chain(lineage)
    assert replayed([base, *deltas]) == oracle.tables


def test_an_empty_delta_and_empty_tables(tmp_path: Path) -> None:
    log = Log(tmp_path)
    none = {n: TableRows(np.empty(0, np.int64), np.empty((0, d), np.float32), np.empty((0, s), np.float32),
                         np.empty(0, np.uint32), np.empty(0, np.int64)) for n, (d, s) in DIMS.items()}  # fmt: skip
    cut = Cut("simulator", "d" * 64, MODEL, none, {}, dict.fromkeys(DIMS, 0), 1)
    with Writer(log, log.new_lineage()) as writer:
        writer.first_base(cut)
        delta = writer.delta(cut)
    assert {n: (k.shape, r.shape) for n, (k, r) in read_rows(delta).items()} == {
        "user": ((0,), (0, 3)),
        "item": ((0,), (0, 5)),
    }
    assert verify(log, writer.lineage) == []


def test_a_compacted_base_is_the_chain_it_was_made_of(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 5)
    with Writer(log, lineage) as writer:
        made = compact(log, writer)
        assert made is not None and made.name == "base-000000005"
        assert compact(log, writer) is None
        assert replayed([made]) == oracle.tables
        writer.delta(oracle.change())
    base, deltas = log.chain(lineage)
    assert (base.seq, [d.seq for d in deltas]) == (5, [6])
    assert replayed([base, *deltas]) == oracle.tables
    old, all_deltas = log.chain(lineage, 0)
    assert replayed([old, *all_deltas]) == oracle.tables
    assert made.learned == all_deltas[4].learned and made.positions == all_deltas[4].positions
    assert verify(log, lineage) == []


def test_pruning_keeps_every_chain_from_a_kept_base(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 0)
    with Writer(log, lineage) as writer:
        for _ in range(4):
            for _ in range(3):
                writer.delta(oracle.change())
            compact(log, writer)
        writer.delta(oracle.change())
        removed = writer.prune(2)
    assert log.seqs(lineage, "base") == [9, 12]
    assert log.seqs(lineage, "delta") == [10, 11, 12, 13]
    assert sorted(removed) == sorted([f"base-{s:09d}" for s in (0, 3, 6)] + [f"delta-{s:09d}" for s in range(1, 10)])
    for base_seq in (9, 12):
        base, deltas = log.chain(lineage, base_seq)
        assert replayed([base, *deltas]) == oracle.tables
    assert verify(log, lineage) == []
    with Writer(log, lineage) as writer:
        assert writer.delta(oracle.change()).seq == 14
        with pytest.raises(ValueError, match="keep_bases is 0"):
            writer.prune(0)


def test_a_second_writer_says_so(tmp_path: Path) -> None:
    log, lineage, _ = begun(tmp_path, 1)
    with Writer(log, lineage):
        with pytest.raises(LogBusy, match=f"{lineage}.lock: held by process [0-9]+: a lineage has one writer"):
            Writer(log, lineage)
        Writer(log, log.new_lineage()).close()
    Writer(log, lineage).close()


def test_lineages_are_named_apart_and_the_old_ones_go(tmp_path: Path) -> None:
    log = Log(tmp_path)
    names = [begun(tmp_path, 1)[1] for _ in range(5)]
    assert [int(name[:6]) for name in names] == [1, 2, 3, 4, 5] and log.lineages() == names
    assert int(log.new_lineage()[:6]) == 6 and int(log.new_lineage()[:6]) == 7  # nothing in them yet, but taken
    log.serve(names[0])
    with Writer(log, names[1]):
        assert prune_lineages(log, 2) == [names[2]]
    assert log.lineages() == [names[0], names[1], names[3], names[4]]
    log.serve(names[4])
    assert prune_lineages(log, 1) == [names[0], names[1], names[3]] and log.lineages() == names[4:]
    with pytest.raises(ValueError, match="keep_lineages is 0, allowed is 1 or more"):
        prune_lineages(log, 0)


FILES = ["rows-0.arrow", "slots-0.arrow", "removed.arrow", "admission.arrow", "dense.arrow", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_is_seen_in_each_file(tmp_path: Path, file: str) -> None:
    log, lineage, _ = begun(tmp_path, 3)
    path = tmp_path / lineage / "delta-000000002" / file
    good = path.read_bytes()
    for at in np.linspace(0, len(good) - 1, 24).astype(int):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(LogBroken, match=r"delta-00000000[23]"):
            log.chain(lineage)
        assert verify(log, lineage)
    path.write_bytes(good)
    log.chain(lineage)


def test_a_gap_is_refused_by_name(tmp_path: Path) -> None:
    log, lineage, _ = begun(tmp_path, 3)
    shutil.rmtree(tmp_path / lineage / "delta-000000002")
    with pytest.raises(LogBroken, match="delta-000000002: missing, but delta-000000003 exists: a gap"):
        log.chain(lineage)
    assert verify(log, lineage) != []
    with pytest.raises(LogBroken):
        Writer(log, lineage)


def test_a_repeat_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path / "a", 3)
    other_log, other, _ = begun(tmp_path / "b", 3, seed=8)
    ours = tmp_path / "a" / lineage
    shutil.copytree(ours / "delta-000000003", ours / "delta-000000004")  # a repeat under the next name
    with pytest.raises(LogBroken, match="is .*delta-000000003, expected .*delta-000000004: a foreign file"):
        log.chain(lineage)
    shutil.rmtree(ours / "delta-000000004")

    theirs = other_log.path / other / "delta-000000003"
    shutil.rmtree(ours / "delta-000000003")
    shutil.copytree(theirs, ours / "delta-000000003")
    with pytest.raises(LogBroken, match="a foreign file"):
        log.chain(lineage)
    manifest = json.loads((theirs / "manifest.json").read_text())  # the same, renamed to our lineage: the link tells
    (ours / "delta-000000003" / "manifest.json").write_text(json.dumps({**manifest, "lineage": lineage}))
    with pytest.raises(LogBroken, match="not of this chain"):
        log.chain(lineage)
    shutil.rmtree(ours / "delta-000000003")

    (ours / "delta-000000002" / "notes.txt").write_text("mine")
    with pytest.raises(LogBroken, match="notes.txt: a foreign file"):
        log.chain(lineage)
    (ours / "delta-000000002" / "notes.txt").unlink()
    (ours / "delta-2").mkdir()
    with pytest.raises(LogBroken, match="delta-2: a foreign file"):
        log.chain(lineage)
    (ours / "delta-2").rmdir()
    with Writer(log, lineage) as writer:
        assert writer.delta(oracle.change()).seq == 3


def test_a_log_of_another_declaration_is_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 1)
    with Writer(log, lineage) as writer:
        writer.delta(replace(oracle.change(), declaration="e" * 64))
    with pytest.raises(LogBroken, match="another declaration"):
        log.chain(lineage)


def test_a_delta_of_another_model_is_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 1)
    with Writer(log, lineage) as writer:
        writer.delta(replace(oracle.change(), model=ModelInfo("logistic", {"rate": 0.1})))
    with pytest.raises(LogBroken, match=r"model is logistic\?rate=0.1, before it deepfm\?dim=3"):
        log.chain(lineage)


def test_a_broken_manifest_says_what_was_found(tmp_path: Path) -> None:
    log, lineage, _ = begun(tmp_path, 1)
    path = tmp_path / lineage / "delta-000000001" / "manifest.json"
    good = json.loads(path.read_text())
    for wrong, said in (
        ({**good, "seq": "1"}, "field seq is '1', expected int"),
        ({k: v for k, v in good.items() if k != "tick"}, "field tick is None"),
        ({**good, "format": 1}, "another format than 3"),
        ([], "a list, expected an object"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(LogBroken, match=said):
            log.chain(lineage)
    path.write_text("{")
    with pytest.raises(LogBroken, match="not a manifest"):
        log.chain(lineage)


def test_a_key_in_rows_and_removed_is_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 0)
    cut = oracle.change()
    user = cut.tables["user"]
    bad = replace(cut, tables={**cut.tables, "user": user._replace(removed=user.keys[:1])})
    with Writer(log, lineage) as writer:
        delta = writer.delta(bad)
    with pytest.raises(LogBroken, match=f"table user: key {user.keys[0]} is in rows and in removed"):
        read_tables(delta)
    assert any("in rows and in removed" in p for p in verify(log, lineage))


def test_an_admission_line_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 0)
    cut = oracle.change()
    item = cut.tables["item"]
    twice = item.admission._replace(places=np.full_like(item.admission.places, 7))
    with Writer(log, lineage) as writer:
        delta = writer.delta(replace(cut, tables={**cut.tables, "item": item._replace(admission=twice)}))
    with pytest.raises(LogBroken, match="admission.arrow: table item: a line of the admission filter is listed twice"):
        read_tables(delta)
    assert any("a line of the admission filter is listed twice" in p for p in verify(log, lineage))


def test_lineages_and_the_serving_pointer(tmp_path: Path) -> None:
    log, first, _ = begun(tmp_path / "log", 1)
    assert log.serving() is None
    log.serve(first)
    assert log.serving() == first
    with pytest.raises(LogError, match="has no base"):
        log.serve("000009-00000000")
    with Writer(log, log.new_lineage()) as writer:
        assert log.lineages() == [first]
        writer.first_base(Oracle(1).whole())
    assert log.lineages() == [first, writer.lineage] and writer.lineage.startswith("000002-")
    assert log.serving() == first
    (log.path / "SERVING").write_text("../../x\n")
    with pytest.raises(LogBroken, match="expected the name of a lineage"):
        log.serving()
    assert Log(tmp_path / "nothing").lineages() == []
    with pytest.raises(ValueError, match="lineage is '..'"):
        log.seqs("..", "base")


def test_explaining_and_listing(tmp_path: Path) -> None:
    log, lineage, oracle = begun(tmp_path, 2)
    rows = listing(log, lineage)
    assert [r["name"] for r in rows] == ["base-000000000", "delta-000000001", "delta-000000002"]
    assert rows[2]["auc"] == pytest.approx(0.53)
    said = explain(log, lineage, 2)
    assert said["examples"] == {"positive": 3, "negative": 0}
    assert said["dense"] == {"w": [2, 3], "b": []}
    assert said["tables"]["user"]["total"] == len(oracle.tables["user"])
    item = said["tables"]["item"]
    assert (item["admission"], item["lines"], said["tables"]["user"]["admission"]) == ("count 1x512", 9, "")
    assert said["previous"] == log.manifest(lineage, "delta", 1).sha256
    assert json.loads(json.dumps(said)) == said
    with pytest.raises(LogError, match="no delta 3"):
        explain(log, lineage, 3)
