"""The served graph by the Session loader, as TensorFlow Serving loads it: each acceptance rule of docs/delta.md."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from common.disk import replace
from delta_log.changes import Changes, TableChanges, fold, read_changes
from serving import journal
from serving.journal import Journal
from serving.server.runtime.servable import LoadOptions, Servable, request_error
from serving.signatures import UNUSED, WRITES, input_name
from serving.sync import push
from tests.support.lineage import ROW_DIM, TOKEN, D, Lineage, request

BASE = "1000000000"
FAR = 2**62


@dataclass
class Loaded:
    """A loaded version, its folder, and the lineage it should equal."""

    path: Path
    lineage: Lineage
    servable: Servable

    def run(self, signature: str, **inputs: Any) -> dict[str, Any]:
        return self.servable.run(signature, {n: np.asarray(v) for n, v in inputs.items()})

    def digest(self) -> dict[str, int]:
        return {n: int(v) for n, v in self.run("digest").items()}

    def state(self) -> dict[str, Any]:
        return self.digest() | {n: np.asarray(v).item() for n, v in self.run("status").items()}

    def next(self, **fields: Any) -> Changes:
        return read_changes(self.lineage.delta(**fields))


def opened(prepared: tuple[Path, Lineage], folder: Path) -> Iterator[Loaded]:
    source, base = prepared
    shutil.copytree(source, folder, dirs_exist_ok=True)
    path = folder / "models" / "ranker" / "served" / BASE
    (path / "assets" / "token").write_text(TOKEN + "\n")
    lineage = base.copy(folder / "log")
    servable = Servable("ranker", int(BASE), path, LoadOptions())
    yield Loaded(path, lineage, servable)
    servable.close()
    lineage.writer.close()


@pytest.fixture
def loaded(prepared: tuple[Path, Lineage], tmp_path: Path) -> Iterator[Loaded]:
    """A version of a test's own, at its base."""
    yield from opened(prepared, tmp_path)


class ByObject(Loaded):
    """A version loaded as an object, which runs no warm-up: its journal is not applied yet."""

    def __init__(self, path: Path, lineage: Lineage) -> None:
        self.path, self.lineage, self.module = path, lineage, tf.saved_model.load(str(path))

    def run(self, signature: str, **inputs: Any) -> dict[str, Any]:
        values = inputs if signature in WRITES[:2] + ("serving_default",) else {UNUSED: np.int64(0)}
        answer = self.module.signatures[signature](**{n: tf.constant(v) for n, v in values.items()})
        return {name: value.numpy() for name, value in answer.items()}

    def apply_file(self) -> int:
        """Calls apply_file as if nobody had."""
        self.module.journal_applied.assign(False)
        return int(self.run("apply_file")["seq"])


@pytest.fixture(scope="module")
def filed(prepared: tuple[Path, Lineage], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByObject]:
    """One for all cases of a journal: each leaves it whole, at the lineage's newest delta."""
    source, base = prepared
    folder = tmp_path_factory.mktemp("filed")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    path = folder / "models" / "ranker" / "served" / BASE
    (path / "assets" / "token").write_text(TOKEN)
    lineage = base.copy(folder / "log")
    yield ByObject(path, lineage)
    lineage.writer.close()


@pytest.fixture(scope="module")
def shared(prepared: tuple[Path, Lineage], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """One for all cases of a refusal: each leaves it whole, one delta further."""
    yield from opened(prepared, tmp_path_factory.mktemp("shared"))


def dense_call(new: Changes, **other: Any) -> dict[str, Any]:
    m = new.manifest
    weights = {input_name(n): v for n, v in new.dense.items()}
    return {"lineage": m.lineage, "seq": np.int64(m.seq), "token": TOKEN, **weights, **other}


def delta_calls(new: Changes, rows: int = 2000, **other: Any) -> list[dict[str, Any]]:
    m, calls = new.manifest, list(push.chunks(new.tables, rows))
    who = {
        "lineage": m.lineage,
        "seq": np.int64(m.seq),
        "token": TOKEN,
        "learned_until_ms": np.int64(m.learned_until_ms),
        "dense_seq": np.int64(m.dense_seq),
    }
    return [who | {"chunk": np.int64(i), "chunks": np.int64(len(calls))} | c | other for i, c in enumerate(calls)]


def apply(to: Loaded, new: Changes, rows: int = 2000) -> None:
    if new.dense:
        to.run("apply_dense", **dense_call(new))
    for call in delta_calls(new, rows):
        to.run("apply_delta", **call)


def test_predictions_equal_numpy(loaded: Loaded) -> None:
    x = request(loaded.lineage, 200)
    answer, expected = loaded.run("serving_default", **x), loaded.lineage.scores(x)
    for task in D.tasks:
        np.testing.assert_allclose(answer[task], expected[task], atol=1e-6)
    assert answer["seq"].tolist() == [0] * 200 and set(answer) == {*D.tasks, "seq"}
    apply(loaded, loaded.next())
    answer, expected = loaded.run("serving_default", **x), loaded.lineage.scores(x)
    for task in D.tasks:
        np.testing.assert_allclose(answer[task], expected[task], atol=1e-6)
    assert answer["seq"].tolist() == [1] * 200


def test_no_rows_at_all_are_scored(loaded: Loaded) -> None:
    x = {n: v[:0] for n, v in request(loaded.lineage).items()}
    assert all(v.shape == (0,) for v in loaded.run("serving_default", **x).values())


def test_deltas_make_the_served_tables_those_of_the_lineage(loaded: Loaded) -> None:
    assert loaded.digest() == loaded.lineage.digest()
    for n, rows in enumerate((2000, 7, 1, 2000), start=1):
        apply(loaded, loaded.next(changed=60, removed=20, new=30), rows)
        assert loaded.digest() == loaded.lineage.digest()
        state = loaded.state()
        assert (state["seq"], state["learned_until_ms"], state["lineage"]) == (
            n,
            1000 * n,
            loaded.lineage.name.encode(),
        )
    for table, rows in loaded.lineage.tables.items():
        assert loaded.state()[f"{table}_size"] >= len(rows)


def test_a_removed_key_comes_back(loaded: Loaded) -> None:
    new = loaded.next(changed=0, removed=10, new=0)
    apply(loaded, new)
    gone = int(new.tables["user"].removed[0])
    loaded.lineage.tables["user"][gone] = row = loaded.lineage.row()
    again = loaded.next(changed=0, removed=0, new=0, digest=False)
    again.tables["user"] = TableChanges(np.array([gone]), row[None], np.empty(0, np.int64))
    apply(loaded, again)
    assert loaded.digest() == loaded.lineage.digest()


def test_applying_twice_changes_nothing_until_seq_moves(loaded: Loaded) -> None:
    new = loaded.next()
    calls = delta_calls(new, rows=20)
    loaded.run("apply_dense", **dense_call(new))
    for call in [*calls[:3], calls[0], calls[1], *calls[:1], *calls[1:]]:  # 0 begins the delta again
        assert loaded.state()["seq"] == 0
        loaded.run("apply_delta", **call)
    assert loaded.state()["seq"] == 1 and loaded.digest() == loaded.lineage.digest()


@dataclass
class Case:
    """The next delta with something wrong about a call: refused, and not a bit of the served state is another.

    `seq` is added to the right one.
    """

    says: str
    signature: str = "apply_delta"
    other: dict[str, Any] = field(default_factory=dict)
    seq: int = 0
    first: Callable[[Loaded, Changes], None] = lambda loaded, new: None
    token: str | None = TOKEN


def begin(loaded: Loaded, new: Changes) -> None:
    loaded.run("apply_dense", **dense_call(new))
    loaded.run("apply_delta", **delta_calls(new, rows=50)[0])


def whole(loaded: Loaded, new: Changes) -> None:
    apply(loaded, new)


KEYS = {
    f"{t}_{k}": v for t in D.tables for k, v in (("keys", np.empty(0, np.int64)), ("removed", np.empty(0, np.int64)))
}
EMPTY = KEYS | {f"{t}_rows": np.empty((0, ROW_DIM), "f4") for t in D.tables}
ROW = np.ones((1, ROW_DIM), "f4")


def one(**other: Any) -> dict[str, Any]:
    return EMPTY | {"chunks": np.int64(1), "user_keys": np.array([5]), "user_rows": ROW, **other}


CASES = {
    "wrong token": Case("write token", other={"token": "guess"}),
    "no token": Case("write token", other={"token": ""}),
    "right token, none installed": Case("write token", token=""),
    "blank token, blank installed": Case("write token", other={"token": ""}, token=" \n"),
    "dense: wrong token": Case("write token", "apply_dense", {"token": "guess"}),
    "another lineage": Case("another lineage", other={"lineage": "000001-ffffffff"}),
    "dense: another lineage": Case("another lineage", "apply_dense", {"lineage": "000001-ffffffff"}),
    "a gap": Case("seq is not", seq=1),
    "dense: a gap": Case("seq is not", "apply_dense", seq=1),
    "the seq it stands at": Case("seq is not", seq=-1),
    "a repeat": Case("seq is not", first=whole),
    "dense: a repeat": Case("seq is not", "apply_dense", first=whole),
    "a negative seq": Case("seq is not", other={"seq": np.int64(-(2**63))}),
    "the no-op form with a row": Case("seq is not", other=one(seq=np.int64(-1))),
    "the no-op form with a removed key": Case("seq is not", other=EMPTY | {"seq": np.int64(-1), "user_removed": [5]}),
    "the no-op form with a row, no token": Case("write token", other=one(seq=np.int64(-1), token="")),
    "a chunk left out": Case("neither the next", other={"chunk": np.int64(2), "chunks": np.int64(4)}, first=begin),
    "begun in the middle": Case("neither the next", other={"chunk": np.int64(1), "chunks": np.int64(4)}),
    "chunk == chunks": Case("not one of chunks", other={"chunk": np.int64(1), "chunks": np.int64(1)}),
    "no chunks": Case("not one of chunks", other={"chunks": np.int64(0)}),
    "a negative chunk": Case("not one of chunks", other={"chunk": np.int64(-1)}),
    "the last chunk before dense": Case("dense weights come first", other={"chunks": np.int64(1)}),
    "a reserved key": Case("reserved", other=one(user_keys=np.array([-(2**63)]))),
    "the other reserved key": Case("reserved", other=one(user_keys=np.array([-(2**63) + 1]))),
    "a reserved key among the removed": Case("reserved", other=one(item_removed=np.array([3, -(2**63)]))),
    "a row that is not a number": Case("finite", other=one(user_rows=ROW * np.float32("nan"))),
    "a row that is infinite": Case("finite", other=one(user_rows=ROW * np.float32("inf"))),
    "more keys than rows": Case("as many rows", other=one(user_keys=np.array([5, 6]))),
    "rows of another length": Case("user_rows", other=one(user_rows=np.ones((1, ROW_DIM + 1), "f4"))),
    "dense that is not a number": Case("finite", "apply_dense", {"heads_bias": np.array([0, np.nan], "f4")}),
    "dense of another shape": Case("heads_bias", "apply_dense", {"heads_bias": np.zeros(3, "f4")}),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_changes_nothing(shared: Loaded, name: str) -> None:
    loaded = shared
    (loaded.path / "assets" / "token").write_text(TOKEN)
    case, new = CASES[name], loaded.next()
    if "before dense" not in name and case.first is Case.first and case.signature == "apply_delta":
        loaded.run("apply_dense", **dense_call(new))
    case.first(loaded, new)
    (loaded.path / "assets" / "token").write_text(case.token or "")
    call = dense_call(new) if case.signature == "apply_dense" else delta_calls(new)[0]
    call["seq"] = call["seq"] + case.seq
    before = loaded.state()
    with pytest.raises(Exception, match=case.says) as refused:
        loaded.run(case.signature, **call | case.other)
    assert request_error(refused.value).code.name in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
    assert TOKEN not in str(refused.value) and "guess" not in str(refused.value)
    assert loaded.state() == before
    # It can still be applied, so nothing was half done.
    (loaded.path / "assets" / "token").write_text(TOKEN)
    if case.first is not whole:
        apply(loaded, new)
    assert loaded.digest() == loaded.lineage.digest() and loaded.state()["seq"] == new.manifest.seq


def test_the_no_op_form_changes_nothing_and_needs_no_token(loaded: Loaded) -> None:
    new, anybody = loaded.next(), {"seq": np.int64(-1), "token": "", "lineage": ""}
    for call in ("apply_dense", "apply_delta"):  # before a delta, and in the middle of it
        before = loaded.state()
        assert loaded.run("apply_dense", **dense_call(new) | anybody)["dense_seq"] == (call == "apply_delta")
        answer = loaded.run("apply_delta", **delta_calls(new)[0] | EMPTY | anybody)
        assert (answer["seq"], answer["chunk"]) == (0, call == "apply_delta")
        assert loaded.state() == before
        begin(loaded, new)
    for rest in delta_calls(new, rows=50)[1:]:
        loaded.run("apply_delta", **rest)
    assert loaded.state()["seq"] == 1 and loaded.digest() == loaded.lineage.digest()


# -- apply_file ----------------------------------------------------------------------------------------------------


def test_a_delta_may_leave_the_dense_weights_as_they_are(loaded: Loaded) -> None:
    apply(loaded, loaded.next())
    for dense in ("held", "trained"):
        new = loaded.next(dense=dense)
        assert new.dense == {} and new.manifest.dense_seq == 1
        [call] = delta_calls(new)
        with pytest.raises(Exception, match="dense weights come first"):
            loaded.run("apply_delta", **call | {"dense_seq": np.int64(0)})
        apply(loaded, new)
        assert loaded.digest() == loaded.lineage.digest()
    apply(loaded, loaded.next())
    assert loaded.digest() == loaded.lineage.digest() and loaded.state()["seq"] == 4


def journal_of(loaded: Loaded, changes: list[Changes], **other: Any) -> Journal:
    tables = changes[0].tables
    for c in changes[1:]:
        tables = {n: fold(tables[n], new) for n, new in c.tables.items()}
    last = changes[-1]
    m = last.manifest
    dense = next(c.dense for c in reversed(changes) if c.dense)
    start = changes[0].manifest.seq - 1
    return Journal(m.lineage, start, m.seq, m.learned_until_ms, tables, dense, m.dense_seq)._replace(**other)


def put(loaded: Loaded, data: bytes) -> None:
    replace(loaded.path / "assets" / "journal.bin", data)


def records_of(changes: list[Changes]) -> bytes:
    """Each delta as a record of its own."""
    whole = b""
    for c in changes:
        m = c.manifest
        record = Journal(m.lineage, m.seq - 1, m.seq, m.learned_until_ms, c.tables, c.dense, m.dense_seq)
        whole += journal.encode(record)
    return whole


def test_a_journal_brings_a_version_up_to_date(filed: ByObject) -> None:
    at = filed.lineage.seq
    assert filed.apply_file() == at  # as exported: a no-op
    changes = [filed.next(changed=50, removed=9, new=21) for _ in range(6)]
    data = journal.encode(journal_of(filed, changes[:3])) + records_of(changes[3:5])
    put(filed, data + records_of(changes[5:])[:-8])  # the last one is torn
    assert filed.apply_file() == at + 5 and filed.state()["learned_until_ms"] == 1000 * (at + 5)
    put(filed, data + records_of(changes[5:]) + bytes(5))
    assert filed.apply_file() == at + 6 and filed.digest() == filed.lineage.digest()
    assert filed.apply_file() == at + 6  # again: a no-op
    put(filed, journal.encode(journal_of(filed, changes[:3])))
    assert filed.apply_file() == at + 6  # a journal that ends before: a no-op, too
    apply(filed, filed.next())  # goes on by deltas
    assert filed.digest() == filed.lineage.digest()


def test_a_journal_is_applied_once_so_nobody_can_set_a_version_back(loaded: Loaded) -> None:
    """The warm-up has applied it. Later calls, which need no token, change nothing, whatever the file holds."""
    first, second = loaded.next(), loaded.next()
    apply(loaded, first)
    put(loaded, records_of([first, second]))
    before = loaded.state()
    assert loaded.run("apply_file")["seq"] == 1 and loaded.state() == before
    put(loaded, b"damaged")
    assert loaded.run("apply_file")["seq"] == 1 and loaded.state() == before
    apply(loaded, second)
    assert loaded.digest() == loaded.lineage.digest()


def test_a_journal_from_the_middle_of_a_delta(filed: ByObject) -> None:
    changes = [filed.next(), filed.next()]
    begin(filed, changes[0])
    put(filed, journal.encode(journal_of(filed, changes)))
    assert filed.apply_file() == filed.lineage.seq and filed.digest() == filed.lineage.digest()


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


BROKEN_FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a header alone": lambda data: data[:128],
    "cut at a word": lambda data: data[: len(data) // 16 * 8],
    "cut in a word": lambda data: data[:-3],
    "longer": lambda data: data + bytes(128),
    "a later record with another from": lambda data: data + flipped(data, 16),
    "a later record with a flipped size": lambda data: data + flipped(data, 40),
    "a later record with a flipped row": lambda data: data + flipped(data, len(data) - 40),
    "no magic": lambda data: flipped(data, 0),
    "another format": lambda data: flipped(data, 8),
    "another from": lambda data: flipped(data, 16),
    "another to": lambda data: flipped(data, 24),
    "another learned_until_ms": lambda data: flipped(data, 32),
    "another size": lambda data: flipped(data, 40),
    "another check": lambda data: flipped(data, 48),
    "another check of the header": lambda data: flipped(data, 64),
    "another lineage length": lambda data: flipped(data, 56),
    "another lineage, flipped": lambda data: flipped(data, 130),
    "another count": lambda data: flipped(data, 192),
    "a flipped key": lambda data: flipped(data, 300),
    "a flipped row": lambda data: flipped(data, len(data) - 40),
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: np.random.default_rng(0).bytes(len(data) // 8 * 8),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_journal_is_refused(filed: ByObject, name: str) -> None:
    new = filed.next()
    good = journal.encode(journal_of(filed, [new]))
    broken = BROKEN_FILES[name](good)
    put(filed, broken)
    before = filed.state()
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError)):
        filed.apply_file()
    assert broken.startswith(good) or filed.state() == before
    put(filed, good)
    assert filed.apply_file() == new.manifest.seq and filed.digest() == filed.lineage.digest()


def with_rows(keys: list[int], value: float) -> Callable[[Journal], Journal]:
    rows = np.full((len(keys), ROW_DIM), value, "f4")
    new = TableChanges(np.array(keys, np.int64), rows, np.empty(0, np.int64))
    return lambda j: j._replace(tables=j.tables | {"item": new})


@pytest.mark.parametrize(
    ("says", "make"),
    [
        ("another lineage", lambda j: j._replace(lineage="000001-ffffffff")),
        ("begins after", lambda j: j._replace(start=j.to)),
        ("reserved", with_rows([7, -(2**63)], 1.0)),
        ("finite", with_rows([7], np.nan)),
        ("finite", lambda j: j._replace(dense={n: v * np.float32("inf") for n, v in j.dense.items()})),
    ],
)
def test_a_whole_journal_that_does_not_fit_changes_nothing(filed: ByObject, says: str, make: Any) -> None:
    new = filed.next()
    put(filed, journal.encode(make(journal_of(filed, [new]))))
    before = filed.state()
    with pytest.raises(tf.errors.InvalidArgumentError, match=says):
        filed.apply_file()
    assert filed.state() == before
    apply(filed, new)


# -- the assets ----------------------------------------------------------------------------------------------------


def test_both_loaders_find_the_assets_where_the_folder_is_now(loaded: Loaded, tmp_path: Path) -> None:
    new = loaded.next()
    loaded.servable.close()
    moved = tmp_path / "elsewhere" / "7"
    moved.parent.mkdir()
    os.rename(loaded.path, moved)
    by_object = tf.saved_model.load(str(moved)).signatures
    # Rewritten after the load, by rename as sync does it.
    replace(moved / "assets" / "journal.bin", journal.encode(journal_of(loaded, [new])))
    by_session = Servable("ranker", 7, moved, LoadOptions())  # its warm-up calls apply_file
    try:
        assert by_session.run("status", {})["seq"] == 1
        assert by_object["apply_file"](unused=tf.constant(0, tf.int64))["seq"] == 1
        replace(moved / "assets" / "token", b"another one")
        after = loaded.next()
        call = dense_call(after, token="another one")
        assert by_session.run("apply_dense", {n: np.asarray(v) for n, v in call.items()})["dense_seq"] == 2
        assert by_object["apply_dense"](**{n: tf.constant(v) for n, v in call.items()})["dense_seq"] == 2
    finally:
        by_session.close()


def test_two_versions_in_one_process_share_nothing(loaded: Loaded) -> None:
    other = Servable("ranker", 2, loaded.path, LoadOptions())
    try:
        before = {n: int(v) for n, v in other.run("digest", {}).items()}
        apply(loaded, loaded.next())
        assert {n: int(v) for n, v in other.run("digest", {}).items()} == before != loaded.digest()
    finally:
        other.close()
