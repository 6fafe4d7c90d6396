"""One model of a replica that dies, falls behind, or loses its disk: in one process, without a model server."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from delta_log.compaction import compact
from serving import journal
from serving.sync import model_sync, version_folder
from serving.sync.installation import Installer
from serving.sync.metrics import Metrics
from serving.sync.model_sync import ModelSync
from serving.sync.versions import FAILED_LOOKS, Versions
from tests.support.disk import full_disk
from tests.support.lineage import HIDDEN_SHAPES, SOURCE, TOKEN, D, Lineage
from tests.support.replica import DIMS, FakeReplica, install
from tests.support.rig import BASE
from tests.support.wait import until


class Rig:
    """A lineage, its replica and its sync, which looks at everything in each step and exports in no time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model_sync, "LOOK_S", 0.0)
        monkeypatch.setattr(Installer, "_export", self._export)
        self.models = folder / "models"
        self.lineage = Lineage(folder / "log").serve()
        self.replica = FakeReplica(self.models / "served")
        install(self.lineage.log.newest_base(self.lineage.name), self.replica.served)
        self.exports: list[int] = []
        self.restart_sync()

    def _export(self, base: Any) -> None:
        class Ended:
            pid = os.getpid()

            def poll(self) -> int:
                return 0

        install(base, self.models / ".install")
        self.exports.append(base.seq)
        self.sync.installer._base, self.sync.installer._child = base, Ended()  # type: ignore[assignment]  # noqa: SLF001

    def restart_sync(self) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.sync = ModelSync(D, SOURCE, self.lineage.log, self.models, self.replica, TOKEN, metrics)

    def delta(self) -> None:
        self.lineage.delta(changed=3, removed=1, new=1, digest=False)

    def steps(self, holds: Callable[[], bool], most: int = 20) -> None:
        for _ in range(most):
            if holds():
                return
            self.sync.step()
        assert holds(), self.sync.reason()

    def well(self) -> bool:
        return self.sync.reason() == "" and self.replica.seqs[max(self.replica.seqs)] == self.lineage.seq

    def confirmed(self) -> list[int]:
        path = self.models / "sync.jsonl"
        return [json.loads(line)["seq"] for line in path.read_text().splitlines()] if path.exists() else []

    def behind(self) -> float | None:
        return self.registry.get_sample_value("minutehand_sync_behind", {"model": "ranker"})

    def journal(self, version: int = BASE) -> journal.Journal:
        data = (self.replica.served / str(version) / "assets" / "journal.bin").read_bytes()
        return journal.decode(data, DIMS, HIDDEN_SHAPES)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(tmp_path, monkeypatch)
    made.replica.start()
    yield made
    made.lineage.writer.close()


def test_a_server_that_dies_at_any_call_starts_again_with_all_that_it_served(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_folder, "FOLD_BYTES", 100_000)  # of a record each 60 kB: some are folded
    rng, late = random.Random(1), list[int]()
    keep = Versions.keep_journals

    def keep_journals(versions: Versions) -> None:
        keep(versions)
        if late:  # the trainer writes a delta after sync has looked for the new ones
            late.pop()
            rig.delta()

    monkeypatch.setattr(Versions, "keep_journals", keep_journals)
    rig.steps(rig.well)
    for _ in range(40):
        if rng.random() < 0.5:
            rig.delta()
        else:
            late.append(1)
        rig.replica.calls_left = rng.randrange(1, 12)
        for _ in range(rng.randrange(1, 4)):
            rig.sync.step()
        if rng.random() < 0.2:
            rig.restart_sync()
        rig.replica.start()
        assert rig.replica.seqs[BASE] >= max([rig.replica.newest, *rig.confirmed()])
        rig.steps(lambda: rig.well() and not late)
    assert rig.confirmed() == list(range(1, 41))
    whole = rig.journal()
    for name, table in rig.lineage.tables.items():
        rows = dict(zip(whole.tables[name].keys.tolist(), whole.tables[name].rows, strict=True))
        assert all((table[key] == row).all() for key, row in rows.items()) and rows
        assert not table.keys() & set(whole.tables[name].removed.tolist())


def test_an_export_that_works_reports_progress_until_a_version_is_served(rig: Rig) -> None:
    class Running:
        pid = os.getpid()
        ends = False

        def poll(self) -> int | None:
            return 0 if self.ends else None

    path = rig.replica.served / str(BASE)
    path.rename(rig.models / "aside")
    rig.replica.up, rig.replica.seqs = False, {}
    rig.steps(lambda: rig.exports == [0])
    child = Running()
    rig.sync.installer._child = child  # type: ignore[assignment]  # noqa: SLF001
    rig.sync.step()
    reasons = set()

    def another() -> bool:
        sum(range(1_000_000))  # this process works as an export does
        reasons.add(rig.sync.reason())
        return len(reasons) > 1

    until(another, "another reason", 20)
    assert all("exporting base-0" in reason and "UNAVAILABLE" in reason for reason in reasons)
    child.ends = True
    rig.sync.step()
    rig.replica.start()
    rig.steps(rig.well)
    rig.sync.installer._child = Running()  # type: ignore[assignment]  # noqa: SLF001
    assert rig.sync.reason() == "", "a replica that serves is ready while it gets a newer base"


def prune(rig: Rig) -> int:
    """Makes a newer base; the log keeps only what follows it. Returns its seq."""
    base = compact(rig.lineage.log, rig.lineage.writer)
    assert base is not None
    rig.lineage.writer.prune(keep_bases=1)
    rig.delta()
    return base.seq


def test_a_replica_before_the_log_counts_as_behind_and_gets_a_newer_base(rig: Rig) -> None:
    rig.delta()
    rig.steps(rig.well)
    assert rig.behind() == 0
    newer = prune(rig)
    rig.steps(rig.well)
    assert rig.exports == []
    rig.replica.seqs[BASE] = 0  # as from a journal that could not be written
    rig.sync.step()
    assert rig.behind() == rig.lineage.seq and "neither delta nor base 0" in rig.sync.reason()
    rig.steps(lambda: rig.exports == [newer] and len(list(rig.replica.served.iterdir())) == 2)
    rig.replica.start()
    rig.steps(rig.well)
    assert rig.behind() == 0 and list(rig.replica.seqs) == [BASE + newer]


def test_a_delta_that_was_never_confirmed_and_is_pruned_keeps_no_other_one_back(rig: Rig) -> None:
    rig.delta()
    rig.steps(rig.well)
    for _ in range(3):
        rig.delta()
    prune(rig)
    (rig.models / "sync.jsonl").unlink()
    rig.restart_sync()
    rig.replica.seqs[BASE] = 4  # the base of the log: it can follow, and of 1 to 4 none is in the log
    rig.steps(rig.well)
    assert rig.confirmed() == [5]


def test_a_full_disk_of_the_replica_stops_no_delta(rig: Rig) -> None:
    rig.delta()
    rig.steps(rig.well)
    for seq in (2, 3):
        rig.delta()
        with full_disk():
            rig.restart_sync()
            rig.steps(lambda: rig.replica.seqs[BASE] == seq)  # noqa: B023
        reason = rig.sync.reason()
        assert "journal: [Errno 27]" in reason and "confirmations: [Errno 27]" in reason
        assert rig.confirmed() == [1] and rig.journal().to == 1
    rig.steps(rig.well)
    assert rig.confirmed() == [1, 2, 3] and rig.journal().to == 3


@pytest.mark.parametrize("newer_base", [False, True])
def test_a_version_that_sync_cannot_read_is_replaced(rig: Rig, newer_base: bool) -> None:
    rig.delta()
    rig.steps(rig.well)
    if newer_base:
        rig.delta()
        prune(rig)
    path = rig.replica.served / str(BASE) / "assets" / "journal.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    rig.restart_sync()
    rig.sync.step()
    assert "damaged version" in rig.sync.reason() and str(path.parents[1]) in rig.sync.reason()
    installed = BASE + (2 if newer_base else 0)
    rig.steps(lambda: not rig.sync.versions.damaged)
    assert [p.name for p in rig.replica.served.iterdir()] == [str(installed)]
    rig.replica.start()
    rig.steps(rig.well)
    assert rig.journal(installed).to == rig.lineage.seq


def test_a_version_that_does_not_load_is_installed_again(rig: Rig) -> None:
    rig.delta()
    rig.steps(rig.well)
    damaged = (rig.replica.served / str(BASE)).stat().st_ino
    rig.replica.errors = {BASE: "truncated variables"}
    rig.replica.seqs = {}
    for _ in range(FAILED_LOOKS - 1):
        rig.sync.step()
    assert rig.exports == [] and "truncated variables" in rig.sync.reason()
    rig.steps(lambda: rig.exports == [0] and (rig.replica.served / str(BASE)).stat().st_ino != damaged)
    for _ in range(3 * FAILED_LOOKS):  # the server still reports the error: no export again at once
        rig.sync.step()
    assert rig.exports == [0]
    rig.replica.errors = {}
    rig.replica.start()
    rig.steps(rig.well)
    assert rig.confirmed() == [1] and not list((rig.models / ".install").iterdir())


def test_a_newer_version_that_does_not_load_gives_way_to_the_one_before(rig: Rig) -> None:
    rig.delta()
    rig.steps(rig.well)
    base = compact(rig.lineage.log, rig.lineage.writer)
    assert base is not None
    install(base, rig.replica.served)
    rig.replica.errors = {BASE + 1: "truncated variables"}
    rig.replica.seqs = {}  # the server has started again, and loads only the newest one
    rig.steps(lambda: [p.name for p in rig.replica.served.iterdir()] == [str(BASE)])
    rig.replica.start()
    rig.steps(rig.well)
    assert rig.exports == []


def test_a_torn_record_of_the_journal_is_written_again(rig: Rig) -> None:
    rig.delta()
    rig.steps(rig.well)
    path = rig.replica.served / str(BASE) / "assets" / "journal.bin"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:1000])  # a kill in the middle of an append
    rig.replica.start()
    rig.restart_sync()
    rig.delta()
    rig.steps(rig.well)
    assert rig.journal().to == 2 and path.read_bytes()[: len(whole)] == whole
