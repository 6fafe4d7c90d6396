"""Sync, the model server and the log as real processes: every delta once, in order, whatever is killed."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np

from delta_log.compaction import compact
from delta_log.manifest import MANIFEST
from serving.client import Scorer
from serving.journal import decode
from serving.sync.push import CHUNK_ROWS
from tests.support.lineage import TOKEN, D, Lineage, request
from tests.support.metrics import get, metric
from tests.support.rig import BASE, Rig, SharedServer
from tests.support.wait import until


def health(rig: Rig) -> tuple[int, str]:
    return get(rig.sync_port, "/healthz")


def ready(rig: Rig) -> None:
    until(lambda: health(rig)[0] == 200, "sync says it is ready", 90)


def says(rig: Rig, *words: str) -> None:
    until(lambda: health(rig)[0] == 503 and all(w in health(rig)[1] for w in words), f"sync names {words}", 60)


def lines(rig: Rig) -> list[dict[str, Any]]:
    path = rig.models / "sync.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # one may be half written


def test_every_delta_arrives_and_is_confirmed(rig: Rig, shared_server: SharedServer) -> None:
    sync = rig.start_sync()
    ready(rig)
    optimised = shared_server.optimised()
    manifests = [rig.lineage.delta(), rig.lineage.delta(changed=250, new=5000, removed=100, dense="held")]
    manifests.append(rig.lineage.delta(0, 0, 0, dense="trained"))
    rig.stands_at(3)
    assert rig.digest() == rig.lineage.digest()
    assert rig.replica.call(BASE, "serving_default", request(rig.lineage, 50))["seq"].tolist() == [3] * 50
    assert shared_server.optimised() == optimised > 0, "the warm-up has made the first call of each signature"
    until(lambda: len(lines(rig)) == 3, "three confirmations")
    for line, manifest in zip(lines(rig), manifests, strict=True):
        assert (line["lineage"], line["seq"], line["bytes"]) == (rig.lineage.name, manifest.seq, manifest.bytes)
        assert line["rows"] == sum(t.rows for t in manifest.tables.values())
        assert line["written_ms"] == manifest.written_ms and line["digests_equal"] is True
        assert line["confirmed_ms"] >= manifest.created_ms and line["apply_ms"] > 0
    assert lines(rig)[1]["chunks"] == -(-(lines(rig)[1]["rows"] + 3 * 100) // CHUNK_ROWS)
    assert metric(rig.sync_port, "minutehand_freshness_seconds_count") == 3 * 7
    assert metric(rig.sync_port, "minutehand_sync_digest_mismatches_total") == 0
    assert sync.end() == 0
    # What was written at the end holds all of it, and the token is nowhere to be read but in its own file.
    dims = {t: len(next(iter(rows.values()))) for t, rows in rig.lineage.tables.items()}
    shapes = {n: v.shape for n, v in rig.lineage.dense.items()}
    journal = decode((rig.served / str(BASE) / "assets" / "journal.bin").read_bytes(), dims, shapes)
    assert (journal.lineage, journal.start, journal.to) == (rig.lineage.name, 0, 3)
    token = rig.served / str(BASE) / "assets" / "token"
    assert token.read_text() == TOKEN and token.stat().st_mode & 0o777 == 0o600
    assert TOKEN not in sync.text() + shared_server.process.text()


def test_the_base_is_installed_by_sync(prepared: tuple[Path, Lineage], shared_server: SharedServer) -> None:
    rig = shared_server.rig(*prepared, installed=False)
    rig.lineage.delta()
    rig.lineage.writer.close()
    rig.start_sync()
    until(lambda: (rig.served / str(BASE)).is_dir(), "a version in the folder", 120)
    ready(rig)
    assert rig.seq() == 1 and rig.digest() == rig.lineage.digest()


def test_killed_server_comes_up_by_its_journal_and_is_caught_up(rig: Rig, shared_server: SharedServer) -> None:
    sync = rig.start_sync()
    ready(rig)
    for dense in ("served", "held", "trained"):
        rig.lineage.delta(dense=dense)
    rig.stands_at(3)
    sync.end()  # writes the journal: to 3
    shared_server.process.kill()
    rig.lineage.delta(dense="held")
    shared_server.start()
    rig.stands_at(3)  # by the warm-up alone, there is no sync
    rig.start_sync()
    rig.stands_at(4)
    assert rig.digest() == rig.lineage.digest()
    until(lambda: [line["seq"] for line in lines(rig)] == [1, 2, 3, 4], "each delta confirmed once")


KILLS = 2


def test_a_killed_server_never_answers_with_less_than_was_confirmed(rig: Rig, shared_server: SharedServer) -> None:
    """Under traffic and a delta every 0.2 s, of which some are written while the server is away."""
    rig.start_sync()
    ready(rig)
    stop, older = threading.Event(), []
    answers, starts = 0, []

    def ask() -> None:
        nonlocal answers
        scorer = Scorer([f"127.0.0.1:{rig.port}"], rig.model, D, timeout=60)
        while not stop.is_set():
            confirmed = max((line["seq"] for line in lines(rig)), default=0)
            seq = scorer.score([{"user": 1}])[1]
            answers += 1
            if seq < confirmed:
                older.append((seq, confirmed))

    def write() -> None:
        while not stop.wait(0.2):
            rig.lineage.delta(digest=False)

    threads = [threading.Thread(target=work) for work in (ask, ask, write)]
    for t in threads:
        t.start()
    for _ in range(KILLS):
        reached = rig.seq() + 3
        until(lambda: rig.seq() >= reached, "some more deltas", 60)  # noqa: B023
        shared_server.process.kill()
        says(rig, "replica")
        at, before = rig.lineage.seq, answers
        shared_server.start()
        until(lambda: answers > before, "an answer of the restarted server", 60)  # noqa: B023
        starts.append((at, rig.seq()))
    stop.set()
    for t in threads:
        t.join()
    assert not older and all(seq >= at for at, seq in starts), (older, starts)
    rig.stands_at(rig.lineage.seq)
    ready(rig)
    assert rig.digest() == rig.lineage.digest()
    until(lambda: [line["seq"] for line in lines(rig)] == list(range(1, rig.lineage.seq + 1)), "each confirmed once")


def test_killed_sync_goes_on(rig: Rig) -> None:
    sync = rig.start_sync()
    ready(rig)
    rig.lineage.delta(new=30_000)
    until(lambda: rig.seq() == 0 and rig.replica.status(BASE).sizes["user"] > 2000 or rig.seq() == 1, "chunks", 60)
    sync.kill()  # among the chunks, or right behind the last one
    with open(rig.models / "sync.jsonl", "a") as f:
        f.write('{"lineage": "torn')
    rig.lineage.delta()
    rig.start_sync()
    rig.stands_at(2)
    assert rig.digest() == rig.lineage.digest()
    until(lambda: [line["seq"] for line in lines(rig)] == [1, 2], "each delta confirmed once")


def _gap(rig: Rig, folder: Path) -> None:
    rig.lineage.delta()
    folder.rename(folder.parents[2] / folder.name)  # the trainer writes on, this one is lost


def _flip(rig: Rig, folder: Path) -> None:
    data = bytearray((folder / "rows-0.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "rows-0.arrow").write_bytes(data)


def _repeat(rig: Rig, folder: Path) -> None:
    shutil.copy(folder.parent / "delta-000000001" / MANIFEST, folder / MANIFEST)


def _foreign(rig: Rig, folder: Path) -> None:
    other = Lineage(rig.folder / "other", "000001-ffffffff", seed=9)
    other.delta()
    second = other.delta()
    other.writer.close()
    shutil.rmtree(folder)
    shutil.copytree(second.folder, folder)


def test_a_broken_log_changes_nothing_is_named_and_heals(rig: Rig) -> None:
    sync = rig.start_sync()
    ready(rig)
    rig.lineage.delta()
    rig.stands_at(1)
    before = rig.digest()
    for break_it, words in (
        (_flip, ("rows-0.arrow", "sha256")),
        (_gap, ("delta-000000002", "missing")),
        (_repeat, ("delta-000000002", "foreign")),
        (_foreign, ("delta-000000002", "foreign")),
    ):
        # Written and broken beside the log, so that sync never sees it whole.
        whole, log = rig.folder / "whole", rig.folder / "log" / rig.lineage.name
        sync.end()
        folder = rig.lineage.delta().folder if rig.lineage.seq == 1 else log / "delta-000000002"
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(log, whole)
        break_it(rig, folder)
        if break_it is _gap:  # the delta behind the gap is part of the whole, too
            shutil.copytree(log / "delta-000000003", whole / "delta-000000003")
        sync = rig.start_sync()
        says(rig, *words)
        assert rig.seq() == 1 and rig.digest() == before
        assert metric(rig.sync_port, "minutehand_sync_errors_total") > 0
        if break_it is not _foreign:  # the next way is made while no sync looks on
            sync.end()
        shutil.rmtree(log)
        whole.rename(log)
    rig.stands_at(3)
    ready(rig)
    assert rig.digest() == rig.lineage.digest()


def test_a_new_lineage_is_installed_beside_the_old_one(rig: Rig) -> None:
    rig.start_sync()
    ready(rig)
    rig.lineage.delta()
    rig.stands_at(1)
    rig.lineage.writer.close()
    second = Lineage(rig.folder / "log", "000002-00c0ffee", seed=3).serve()
    second.delta()
    until(lambda: rig.seq(2 * BASE) == 1, "the second lineage at seq 1", 120)
    ready(rig)
    assert rig.digest(2 * BASE) == second.digest()
    until(lambda: rig.seq(BASE) == -1, "the first lineage unloaded")
    second.delta()
    rig.stands_at(2, 2 * BASE)
    # Back to the first: its number is lower, so the second one's version must go; no prediction fails meanwhile.
    rig.lineage.log.serve(rig.lineage.name)
    scorer = Scorer([f"127.0.0.1:{rig.port}"], rig.model, D, timeout=5)
    until(lambda: scorer.score([{"user": 1}]) and rig.seq(BASE) == 1, "the first lineage again", 120)
    until(lambda: scorer.score([{"user": 1}]) and rig.seq(2 * BASE) == -1, "the second lineage unloaded")
    ready(rig)
    rig.lineage.open()
    rig.lineage.delta()
    rig.stands_at(2)
    assert rig.digest() == rig.lineage.digest()
    second.writer.close()


def test_one_sync_a_replica_and_a_token_is_needed(own_rig: Rig) -> None:
    without = own_rig.start_sync(token=None)
    assert without.wait() == 2
    assert "MINUTEHAND_WRITE_TOKEN" in without.text()
    first = own_rig.start_sync()
    until(lambda: health(own_rig)[0], "health answers")
    own_rig.sync_port = 0
    second = own_rig.start_sync()
    assert second.wait() == 2
    assert "sync.lock" in second.text() and first.code is None


def test_a_digest_that_differs_is_reported(rig: Rig) -> None:
    rig.start_sync()
    ready(rig)
    right = rig.lineage.digest
    rig.lineage.digest = lambda: right() | {"user": 1}  # type: ignore[method-assign]
    rig.lineage.delta()
    says(rig, "digest", "user")
    assert metric(rig.sync_port, "minutehand_sync_digest_mismatches_total") == 1
    assert [line["digests_equal"] for line in lines(rig)] == [False]
    rig.lineage.digest = right  # type: ignore[method-assign]
    rig.lineage.delta()
    ready(rig)
    assert [line["digests_equal"] for line in lines(rig)] == [False, True]


def test_predictions_go_on_while_deltas_are_applied(rig: Rig) -> None:
    from tests.support.lineage import request

    rig.start_sync()
    ready(rig)
    x, seqs = request(rig.lineage), []
    for _ in range(3):
        rig.lineage.delta(new=8000)
        while not seqs or seqs[-1] < rig.lineage.seq:
            answer = rig.replica.call(BASE, "serving_default", x)
            assert np.isfinite(answer["click"]).all() and len(set(answer["seq"].tolist())) == 1
            seqs.append(int(answer["seq"][0]))
    assert seqs == sorted(seqs) and set(seqs) >= {3}


def test_removed_keys_fill_a_table_until_a_newer_base_makes_room(rig: Rig) -> None:
    rig.start_sync()
    ready(rig)
    capacity = rig.replica.status(BASE).capacities["user"]
    while rig.replica.status(BASE).sizes["user"] <= 0.9 * capacity:
        last = rig.lineage.delta(changed=0, removed=4000, new=4000, digest=False)
        rig.stands_at(last.seq)
    live = last.tables["user"].total
    assert live < capacity / 2 and last.tables["user"].removed > 0
    assert compact(rig.lineage.log, rig.lineage.writer) is not None
    newer = BASE + last.seq
    rig.stands_at(last.seq, newer)
    assert rig.replica.status(newer).sizes["user"] == live
    assert rig.replica.status(newer).capacities["user"] > 2 * live
    after = rig.lineage.delta(removed=500, digest=False)
    rig.stands_at(after.seq, newer)
    assert rig.digest(newer) == rig.lineage.digest()
