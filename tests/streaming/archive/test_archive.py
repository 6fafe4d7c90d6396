"""The archive: each record once whatever is killed, complete intervals only, the same table whatever was merged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.disk import Busy
from common.errors import InputError
from streaming.archive import commits as archive_log
from streaming.archive.archive import Archive, NotArchived
from streaming.archive.columns import from_table, schemas, to_table
from streaming.archive.commits import HOUR_MS, ArchiveError, Writer
from streaming.archive.rows import Decoder
from streaming.declaration import Declaration, Feature
from streaming.example import Batch, from_exposures
from streaming.publisher import action, impression
from streaming.source import load
from streaming.topics import ACTIONS, EXAMPLES, IMPRESSIONS
from tests.support import PROJECT
from tests.support.replay import EVENT_TIME

SOURCE = load("simulator?seed=5&minutes=5")
DECLARATION = SOURCE.declaration
DAY_MS = 1_651_622_400_000  # 2022-05-04
BATCHES, ROWS = 4, 40
"""Commits of the kill test, and the records of each."""


def same(a: Batch, b: Batch) -> bool:
    plain = ("kind", "user_id", "item_id", "ts_ms", "event_ms", "written_ms", "seq", "pi", "labels", "weights")
    return (
        a.impression_id.equals(b.impression_id)
        and a.lineage.equals(b.lineage)
        and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in plain)
        and np.array_equal(a.scores, b.scores, equal_nan=True)
        and all(
            all(np.array_equal(x, y) for x, y in zip(a.features[n], b.features[n], strict=True))
            if isinstance(a.features[n], tuple)
            else np.array_equal(a.features[n], b.features[n])
            for n in a.features
        )
    )


def test_a_batch_as_columns_is_the_same_batch() -> None:
    batch = from_exposures(islice(SOURCE.live(), 300), DECLARATION)
    batch.kind = np.where(batch.labels.max(1) > 0, "positive", "negative")
    batch.scores[::3] = 0.25
    table = to_table(batch, DECLARATION)
    assert set(table.schema.names) == set(schemas(DECLARATION)[EXAMPLES].names) - {"partition", "offset"}
    assert same(from_table(table, DECLARATION), batch)
    assert same(from_table(table.slice(20, 50), DECLARATION), batch.slice(20, 70))
    assert table[f"score_{DECLARATION.judged}"].null_count == 200
    with pytest.raises(ValueError, match="column pi is missing"):
        from_table(table.drop_columns(["pi"]), DECLARATION)
    with pytest.raises(ValueError, match="column pi is float, allowed is double"):
        from_table(table.set_column(table.schema.names.index("pi"), "pi", table["pi"].cast("float32")), DECLARATION)


def records(batch: int) -> pa.Table:
    """The action records of one commit: two partitions, times that go over hours, an id each."""
    at = np.arange(batch * ROWS, (batch + 1) * ROWS)
    times = DAY_MS + at * HOUR_MS // (2 * ROWS)  # two commits an hour
    return pa.table(
        {
            "impression_id": [f"i{k}" for k in at],
            "action": ["click"] * ROWS,
            "ts_ms": times,
            "value": at / 2,
            "written_ms": at,
            "partition": (at % 2).astype(np.int32),
            "offset": at // 2,
        },
        schema=schemas(DECLARATION)[ACTIONS],
    )


def positions(batch: int) -> dict[str, Any]:
    """After that many commits."""
    offsets = {str(p): batch * ROWS // 2 for p in range(2)}
    return {ACTIONS: {"cluster": "c", "topic": ACTIONS, "topic_id": "t", "offsets": offsets}}


def finish(writer: Writer, last: int = BATCHES) -> None:
    """Commit what is not committed yet, by the positions of the newest manifest; one record late in a closed hour."""
    newest = writer.newest.positions[ACTIONS]["offsets"]["0"] if writer.newest else 0
    for batch in range(newest * 2 // ROWS, last):
        until = DAY_MS + (batch + 1) * HOUR_MS // 2 - 1
        writer.commit({ACTIONS: records(batch)}, positions(batch + 1), {ACTIONS: {"0/0/1": until}}, {ACTIONS: until})


def written(path: Path, last: int = BATCHES) -> Archive:
    with Writer(path, "test", DECLARATION) as writer:
        finish(writer, last)
    return Archive(path)


def whole(last: int = BATCHES) -> pa.Table:
    return archive_log.by_time(pa.concat_tables([records(b) for b in range(last)]), ACTIONS)


def test_an_interval_is_complete_or_named(tmp_path: Path) -> None:
    archive, end = Archive(tmp_path / "a"), DAY_MS + BATCHES * HOUR_MS // 2
    assert archive.until_ms(ACTIONS) == -1
    with pytest.raises(NotArchived, match="there is no archive"):
        archive.read(ACTIONS, DAY_MS, end)
    written(tmp_path / "a")
    assert archive.until_ms(ACTIONS) == end - 1 and archive.since_ms(ACTIONS) == DAY_MS
    assert archive.read(ACTIONS, DAY_MS, end).equals(whole())
    inner = archive.read(ACTIONS, DAY_MS + 7, DAY_MS + HOUR_MS + 7)
    times = whole()["ts_ms"].to_numpy()
    assert inner.num_rows == ((times >= DAY_MS + 7) & (times < DAY_MS + HOUR_MS + 7)).sum()
    assert archive.read(ACTIONS, DAY_MS + 1, DAY_MS + 2).num_rows == 0
    with pytest.raises(NotArchived, match=r"not complete, archived until 2022-05-04 01:59:59 \("):
        archive.read(ACTIONS, DAY_MS, end + 1)
    with pytest.raises(NotArchived, match="before the archive begins, at 2022-05-04 00:00:00"):
        archive.read(ACTIONS, DAY_MS - 10, DAY_MS)
    with pytest.raises(NotArchived, match="no progress of it is archived yet"):
        archive.read(EXAMPLES, DAY_MS, end)
    with pytest.raises(ValueError, match="allowed are examples, impressions, actions"):
        archive.read("clicks", DAY_MS, end)
    with pytest.raises(ValueError, match="allowed is later than its begin"):
        archive.read(ACTIONS, 5, 5)


def test_closed_hours_are_merged_and_positions_name_the_cut(tmp_path: Path) -> None:
    archive = written(tmp_path)
    files = archive_log.read(tmp_path)[1]
    assert sorted(files) == sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*/*.parquet"))
    # The last hour was closed by its second commit, which took the first one in.
    assert sorted(f.hour for f in files.values()) == [f"2022-05-04T0{h}" for h in range(2)]
    for cut in (DAY_MS + 1, DAY_MS + HOUR_MS, DAY_MS + 3 * HOUR_MS // 2 + 3, DAY_MS + 2 * HOUR_MS):
        table = whole().filter(pa.array(whole()["ts_ms"].to_numpy() >= cut))
        expected = {str(p): BATCHES * ROWS // 2 for p in range(2)}
        for place in table.select(["partition", "offset"]).to_pylist():
            key = str(place["partition"])
            expected[key] = min(expected[key], place["offset"])
        assert archive.positions(ACTIONS, cut)["offsets"] == expected
    # A late record of a closed hour is merged into it, and is there once.
    with Writer(tmp_path, "test", DECLARATION) as writer:
        assert writer.newest is not None
        late = records(BATCHES).slice(0, 1).set_column(2, "ts_ms", pa.array([DAY_MS + 5], pa.int64()))
        writer.commit({ACTIONS: late}, positions(BATCHES + 1), {}, writer.newest.until_ms)
    assert len(archive_log.read(tmp_path)[1]) == 2
    assert archive.read(ACTIONS, DAY_MS, DAY_MS + HOUR_MS).num_rows == 2 * ROWS + 1


def test_many_commits_leave_few_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_log, "WHOLE_EVERY", 4)
    assert written(tmp_path, 11).read(ACTIONS, DAY_MS, DAY_MS + 11 * HOUR_MS // 2).equals(whole(11))
    assert [p.stem for p in archive_log.manifests(tmp_path)] == ["000000008", "000000009", "000000010"]
    archive_log.manifests(tmp_path)[1].unlink()
    with pytest.raises(ArchiveError, match=r"000000009.json: missing: a gap"):
        archive_log.read(tmp_path)


def test_killed_at_every_step(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.streaming.archive.kill_child", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(PROJECT)}, timeout=200, capture_output=True, text=True,
    )  # fmt: skip
    ended = [tuple(map(int, line.split())) for line in child.stdout.splitlines()]
    assert ended[-1][1] == 3, child.stderr
    assert len(ended) > 40 and {code for _, code in ended[:-1]} == {-signal.SIGKILL}
    half_written = 0
    for n, _ in ended:
        folder = tmp_path / str(n)
        found = archive_log.read(folder)
        named = set(found[1]) if found else set()
        there = {str(p.relative_to(folder)) for p in folder.glob("*/*/*.parquet")}
        assert named <= there
        half_written += named < there
        archive = written(folder)  # the next start
        assert archive.read(ACTIONS, DAY_MS, DAY_MS + BATCHES * HOUR_MS // 2).equals(whole())
        assert {str(p.relative_to(folder)) for p in folder.glob("*/*/*.parquet")} == set(archive_log.read(folder)[1])
    assert half_written > 10


def test_one_writer_one_declaration_and_a_flipped_bit(tmp_path: Path) -> None:
    with Writer(tmp_path, "test", DECLARATION) as writer:
        with pytest.raises(Busy, match="LOCK: held by process .*: an archive has one writer"):
            Writer(tmp_path, "test", DECLARATION)
        finish(writer)
    with pytest.raises(InputError, match="task .* is removed.* begin a new folder"):
        Writer(tmp_path, "test", replace(DECLARATION, tasks=(DECLARATION.judged,)))
    file = sorted(tmp_path.glob("actions/*/*.parquet"))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArchiveError, match="of another sha256 than its manifest says"):
        Archive(tmp_path).read(ACTIONS, DAY_MS, DAY_MS + HOUR_MS)


def grown() -> Declaration:
    """The simulator's declaration with a feature of each kind and a task more."""
    more = (Feature("hits", "number", default=0.5), Feature("brand", "id", default=9), Feature("likes", "ids", "clip"))
    return replace(DECLARATION, features=(*more, *DECLARATION.features), tasks=(*DECLARATION.tasks, "share"))


def examples(batch: Batch, declaration: Declaration, first: int) -> pa.Table:
    table = to_table(batch, declaration).append_column("partition", pa.array(np.zeros(batch.size, np.int32)))
    return table.append_column("offset", pa.array(np.arange(first, first + batch.size)))


def test_days_from_before_the_source_grew_are_read_with_its_new_columns(tmp_path: Path) -> None:
    old = from_exposures(islice(SOURCE.live(), 60), DECLARATION)
    old.kind = np.full(60, "negative")
    begin, end = int(old.event_ms.min()), int(old.event_ms.max()) + HOUR_MS
    until = {EXAMPLES: end}

    def places(n: int) -> dict[str, Any]:
        return {EXAMPLES: {"cluster": "c", "topic": EXAMPLES, "topic_id": "t", "offsets": {"0": n}}}

    with Writer(tmp_path, "test", DECLARATION) as writer:
        writer.commit({EXAMPLES: examples(old, DECLARATION, 0)}, places(60), {}, until)
    before = from_table(Archive(tmp_path, grown()).read(EXAMPLES, begin, end), grown())
    with Writer(tmp_path, "test", grown()) as writer:
        new = from_exposures(islice(SOURCE.live(), 60), grown())
        writer.commit({EXAMPLES: examples(new, grown(), 60)}, places(120), {}, until)
        assert len(writer.newest.gone) == 1, "the hours are closed: old and new records are merged"
    table = Archive(tmp_path).read(EXAMPLES, begin, end)
    assert table.schema.names == schemas(grown())[EXAMPLES].names
    of_old = table.filter(pa.array(table["offset"].to_numpy() < 60))
    assert same(from_table(of_old, DECLARATION), old.take(np.argsort(old.event_ms, kind="stable")))
    for batch in (before, from_table(of_old, grown())):
        assert batch.size == 60 and batch.weights[:, -1].max() == 0 == batch.labels[:, -1].max()
        assert set(batch.features["hits"].tolist()) == {0.5} and set(batch.features["brand"].tolist()) == {9}
        assert len(batch.features["likes"].values) == 0 and batch.features["likes"].row_splits.tolist() == [0] * 61
    of_new = from_table(table.filter(pa.array(table["offset"].to_numpy() >= 60)), grown())
    assert of_new.size == 60 and of_new.weights[:, -1].min() == 1
    with pytest.raises(InputError, match="brand is removed; feature hits is removed.*: allowed are new f"):
        Archive(tmp_path, DECLARATION).read(EXAMPLES, begin, end)


def record(value: bytes, offset: int = 0) -> Any:
    return SimpleNamespace(value=value, offset=offset, timestamp=1)


def test_events_become_rows_and_bad_lines_are_named() -> None:
    exposure = next(iter(SOURCE.live()))
    shown = impression("i", "r", 7, 9, DAY_MS, 3, exposure.features, {DECLARATION.judged: 0.5}, "l", 4, "a")
    bare = {k: shown[k] for k in ("impression_id", "user_id", "item_id", "ts_ms")} | {"features": {}}
    number = next(f.name for f in DECLARATION.features if f.kind == "number")
    bad = [b"", b"null", b"[1]", b"\xff", b"[" * 100_000, b'{"heartbeat_ms": -1}']
    bad += [json.dumps({**shown, "features": {number: x}}).encode() for x in (10**400, 1e39)]
    bad += [json.dumps({**shown, "ts_ms": 2**62}).encode(), json.dumps({**bare, "user_id": None}).encode()]
    lines = [
        json.dumps(shown).encode(),
        json.dumps(bare).encode(),
        b'{"heartbeat_ms": 12, "lease": "test"}',
        b'{"heartbeat_ms": 99}',
        *bad,
    ]
    rows = Decoder(DECLARATION, EVENT_TIME).rows(
        IMPRESSIONS, 1, [record(line, 100 + k) for k, line in enumerate(lines)]
    )
    assert [place for place, _, _ in rows.bad] == list(range(4, len(lines)))
    assert all(kind and reason for _, kind, reason in rows.bad)
    assert [(b.heartbeat_ms, b.subtask, b.subtasks) for b in rows.beats] == [(12, 0, 1)]
    first, second = rows.table.to_pylist()
    assert (first["position"], first["arm"], first["seq"], first["partition"], first["offset"]) == (3, "a", 4, 1, 100)
    assert first[f"score_{DECLARATION.judged}"] == 0.5 and second[f"score_{DECLARATION.judged}"] is None
    assert (second["request_id"], second["position"], second["seq"]) == ("", 0, -1)
    for f in DECLARATION.features:
        given, default = exposure.features[f.name], second[f"feature_{f.name}"]
        assert first[f"feature_{f.name}"] == (pytest.approx(given) if f.kind == "number" else given)
        assert default == (list(f.default) if isinstance(f.default, tuple) else f.default)
    done = Decoder(DECLARATION, EVENT_TIME).rows(
        ACTIONS, 0, [record(json.dumps(action("i", DECLARATION.judged, 5, 2**60 + 1)).encode())]
    )
    assert done.table.to_pylist()[0]["value"] == float(2**60 + 1) and not done.bad
    assert schemas(DECLARATION)[IMPRESSIONS].equals(rows.table.schema)
