"""A warm start on a real broker: the new lineage learns the chosen days and then every later record once, takes over
from the one that is served, and gives it back; whatever is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_log.log import Log
from delta_log.manifest import LogBroken, Manifest
from delta_log.verification import verify
from delta_log.writer import Writer as LogWriter
from streaming import topics
from streaming.archive.archive import Archive
from streaming.archive.archiver import Archiver, Gauges
from streaming.archive.columns import to_table
from streaming.archive.commits import Writer
from streaming.example import decode
from streaming.reader import Reader
from streaming.source import load
from tests.support import PROJECT
from tests.support.broker import Broker
from tests.support.feeding import Sender, examples, learned_by
from tests.support.process import Process
from tests.support.replay import EVENT_TIME
from tests.support.wait import until
from training.learn import batch_pass as batch
from training.learn.learner import Learner
from training.learn.state import State
from training.models.model import load as load_model
from training.pipeline import candidates, warm_start

SOURCE = "simulator?seed=5&minutes=5"
DECLARATION = load(SOURCE).declaration
JUDGED = DECLARATION.tasks.index(DECLARATION.judged)
LIVE = list(islice(load(SOURCE).live(), 3000))
RNG = np.random.default_rng(3)
RECORDS = [
    {**r, "scores": {task: float(RNG.uniform(0.05, 0.6)) for task in DECLARATION.tasks}}
    for r in examples(LIVE, DECLARATION)
]
BEGIN_MS = min(r["event_ms"] for r in RECORDS)
END_MS, JUDGED_MS = (int(np.quantile([r["event_ms"] for r in RECORDS], q)) for q in (0.4, 0.6))
LAST_MS = max(r["event_ms"] for r in RECORDS)


def newest(log: Log, lineage: str) -> Manifest:
    return log.manifests(lineage)[-1]


class Rig:
    """A broker, an archive of it, a log with an untrained lineage that is served, and the trainer that follows it."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder, self.log = broker, folder, Log(folder / "log")
        topics.create(broker.bootstrap)
        self.sender = Sender(broker.bootstrap)
        assert batch.main(["--source", SOURCE, "--log", str(self.log.path), "--untrained"]) == 0
        self.first = str(self.log.serving())
        self.archive = Archive(folder / "archive")
        self.trainer = self.start()

    def start(self) -> Process:
        where = ("--source", SOURCE, "--log", str(self.log.path), "--kafka", self.broker.bootstrap)
        return Process(self.folder / "trainer.log", "training.learn.online", *where, "--sync-every-ms", "300")

    def send(self, begin: int, end: int, progress_ms: int) -> None:
        for at in range(begin, end, 400):
            self.sender.send(RECORDS[at : min(at + 400, end)], 0)
        self.sender.send([], progress_ms)

    def archive_until(self, ms: int) -> None:
        with Writer(self.archive.path, SOURCE, DECLARATION) as writer:
            positions = writer.newest.positions if writer.newest else {}
            reader = Reader(self.broker.bootstrap, ("examples", "impressions", "actions"), positions)
            archiver = Archiver(reader, writer, DECLARATION, EVENT_TIME, 100, 500, Gauges())
            until(lambda: archiver.turn() or self.archive.until_ms("examples") >= ms, "the archive", 240)
            reader.close()

    def promote(self, lineage: str, *more: str, module: str = "training.pipeline.warm_start") -> int:
        command = [sys.executable, "-m", module, "promote"]
        command += ["--source", SOURCE, "--log", str(self.log.path), "--kafka", self.broker.bootstrap]
        return subprocess.run([*command, "--lineage", lineage, *more], cwd=PROJECT, timeout=200, stdout=-3).returncode

    def trained_by(self, lineage: str) -> int:
        """Who holds the lineage's lock, or held it last."""
        return int((self.log.path / f"{lineage}.lock").read_text() or -1)  # empty while it is being written

    def end(self) -> None:
        self.trainer.kill()
        self.sender.close()


def run(capsys: pytest.CaptureFixture[str], step: str, *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert warm_start.main([step, "--source", SOURCE, *map(str, arguments)]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.timeout(600)
def test_every_record_once_in_both_lineages_through_take_over_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    third, two_thirds = len(RECORDS) * 7 // 10, len(RECORDS) * 85 // 100
    with Broker() as broker:
        rig = Rig(broker, tmp_path)
        try:
            # The simulator's negatives come a window after their impressions: wide disorder at the cut.
            rig.send(0, third, JUDGED_MS)
            rig.archive_until(JUDGED_MS - 1)
            interval = ["--log", rig.log.path, "--archive", rig.archive.path, "--begin", BEGIN_MS, "--end", END_MS]
            begun = run(capsys, "train", *interval)
            second = begun["lineage"]
            base = rig.log.manifest(second, "base", 0)
            table = rig.archive.read("examples", BEGIN_MS, END_MS)
            ends = np.array([base.positions["offsets"][str(p)] for p in table["partition"].to_pylist()])
            inside = table["offset"].to_numpy() < ends
            assert begun["rows"] == inside.sum() and begun["behind"] == (~inside).sum() > 0
            place = {(r["impression_id"], r["kind"], tuple(r["weights"])): r for r in RECORDS}
            weights = zip(*(table[f"weight_{task}"].to_pylist() for task in DECLARATION.tasks), strict=True)
            keys = zip(table["impression_id"].to_pylist(), table["kind"].to_pylist(), weights, strict=True)
            batch_part = [place[key] for key, before in zip(keys, inside, strict=True) if before]
            assert base.learned == learned_by(batch_part)
            assert rig.log.serving() == rig.first  # it serves on

            # The same data again, now from files as a sampling writes them: the lineage is there already.
            pq.write_table(table, tmp_path / "part-0.parquet")
            assert run(capsys, "train", *interval, "--examples", tmp_path / "part-0.parquet")["lineage"] == second

            # Not before it is judged; not past the gate's figures; then it is killed when it has learned to the head.
            ask = ["--source", SOURCE, "--log", str(rig.log.path), "--kafka", broker.bootstrap, "--lineage", second]
            assert warm_start.main(["promote", *ask]) == 2 and "is not evaluated" in caplog.text
            judged = ["--log", rig.log.path, "--archive", rig.archive.path, "--begin", END_MS, "--end", JUDGED_MS]
            report = run(capsys, "evaluate", *judged, "--lineage", second)
            assert report["candidate"]["auc"] > report["served"]["auc"] and report["low"] < report["difference"]
            candidates.write(
                rig.log, second, {**candidates.read(rig.log, second), "evaluation": {**report, "low": -0.2}}
            )
            assert warm_start.main(["promote", *ask]) == 3
            assert "served AUC, is -0.2000, allowed is above -0.01" in caplog.text
            candidates.write(rig.log, second, {**candidates.read(rig.log, second), "evaluation": report})
            wide = ("--tolerance", "0.5", "--calibration", "100")
            assert rig.promote(second, *wide, module="tests.training.pipeline.promote_child") == -signal.SIGKILL
            assert rig.log.serving() == rig.first and newest(rig.log, second).seq == 1
            assert newest(rig.log, second).learned == learned_by(RECORDS[:third])
            assert newest(rig.log, second).written_ms == {"positive": {}, "negative": {}}
            rig.send(third, two_thirds, JUDGED_MS)
            assert rig.promote(second, *wide) == 0 and rig.log.serving() == second

            # The trainer follows, under the same pid, and what it had learned of the old lineage is all there.
            until(lambda: rig.trained_by(second) == rig.trainer.pid, "the take-over", 240)
            rig.send(two_thirds, len(RECORDS) - 500, JUDGED_MS)
            sent = learned_by(RECORDS[:-500])
            until(lambda: newest(rig.log, second).learned == sent, "the new lineage to learn on", 240)
            assert newest(rig.log, second).written_ms["positive"]
            end = newest(rig.log, rig.first)

            # Back again, and killed as soon as it is to follow: the next start goes on with what is served.
            assert rig.promote(rig.first, "--force") == 0 and rig.log.serving() == rig.first
            assert newest(rig.log, rig.first).seq > end.seq
            rig.trainer.kill()
            rig.send(len(RECORDS) - 500, len(RECORDS), LAST_MS)
            rig.trainer = rig.start()
            until(lambda: newest(rig.log, rig.first).learned_until_ms >= LAST_MS, "the old lineage to learn on", 240)
            assert newest(rig.log, rig.first).learned == learned_by(RECORDS)
            assert rig.trainer.end() == 0
            for lineage in (rig.first, second):
                assert verify(rig.log, lineage) == []
        finally:
            rig.end()
            print(rig.trainer.tail())


def archived(path: Path) -> dict[str, int]:
    """RECORDS as an archiver keeps them, of two partitions; each record's offset by its place."""
    batch_ = decode([json.dumps(r).encode() for r in RECORDS], DECLARATION)
    place = np.arange(batch_.size)
    table = to_table(batch_, DECLARATION)
    table = table.append_column("partition", pa.array((place % 2).astype(np.int32)))
    table = table.append_column("offset", pa.array(place // 2, pa.int64()))
    ends = {str(p): (batch_.size + 1 - p) // 2 for p in range(2)}
    positions = {"examples": {"cluster": "c", "topic": "examples", "topic_id": "t", "offsets": ends}}
    with Writer(path, SOURCE, DECLARATION) as writer:
        writer.commit({"examples": table}, positions, {}, {"examples": LAST_MS})
    return ends


def test_begun_from_what_serves_it_leaves_out_what_that_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ends = archived(tmp_path / "archive")
    delta_log = Log(tmp_path / "log")
    where = ["--log", delta_log.path, "--archive", tmp_path / "archive", "--begin", BEGIN_MS]
    first = run(capsys, "train", *where, "--end", END_MS)
    assert first["from"] == "none" and first["known"] == 0 and first["behind"] > 0
    delta_log.serve(first["lineage"])
    more = run(capsys, "train", *where, "--end", LAST_MS + 1, "--from", "serving")
    assert more["from"] == f"{first['lineage']}/base-000000000" and more["positions"]["offsets"] == ends
    # All in all every record once: those of the base, and those that were behind it, once more positions are passed.
    assert (more["known"], more["behind"]) == (first["rows"], 0)
    assert more["rows"] == len(RECORDS) - first["rows"] and more["learned"] == learned_by(RECORDS)
    newer = delta_log.manifest(more["lineage"], "base", 0)
    assert newer.learned_until_ms == LAST_MS and newer.positions["offsets"] == ends
    delta_log.serve(more["lineage"])
    # The same again now that it serves: it is found. Others that it knows are nothing to learn.
    assert run(capsys, "train", *where, "--end", LAST_MS + 1, "--from", "serving") == more
    assert (
        warm_start.main(["train", "--source", SOURCE, *map(str, where), "--end", str(END_MS), "--from", "serving"]) == 3
    )
    assert "nothing to learn" in caplog.text and "the base has learned" in caplog.text
    assert delta_log.lineages() == [first["lineage"], more["lineage"]]


def test_a_broken_delta_is_refused_and_a_warm_start_is_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archived(tmp_path / "archive")
    delta_log = Log(tmp_path / "log")
    where = ["--log", delta_log.path, "--archive", tmp_path / "archive", "--begin", BEGIN_MS]
    first = run(capsys, "train", *where, "--end", END_MS)["lineage"]
    delta_log.serve(first)
    state = a_state()
    state.restore(delta_log, first)
    state.learn(decode([json.dumps(r).encode() for r in RECORDS[-300:]], DECLARATION))
    with LogWriter(delta_log, first) as writer:
        delta = writer.delta(state.cut(state.positions))
    path = delta.folder / "rows-0.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogBroken, match=f"{path}: sha256 .*, expected "):
        a_state().restore(delta_log, first)  # as the trainer does, at each start

    # The delta's examples are in the archive. A new lineage begins with the base before it, and learns them again.
    second = run(capsys, "train", *where, "--end", LAST_MS + 1, "--from", "serving")
    assert second["from"] == f"{first}/base-000000000" and second["learned"] == learned_by(RECORDS)
    delta_log.serve(second["lineage"])
    assert a_state().restore(delta_log, second["lineage"]).learned == learned_by(RECORDS)


def a_state() -> State:
    return State(Learner(load_model("deepfm", DECLARATION)), SOURCE)


def test_a_candidate_is_judged_while_it_learns_and_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archived(tmp_path / "archive")
    log, where = tmp_path / "log", ["--log", tmp_path / "log", "--archive", tmp_path / "archive"]
    lineage = run(capsys, "train", *where, "--begin", BEGIN_MS, "--end", END_MS)["lineage"]
    before = {path: path.read_bytes() for path in (log / lineage).rglob("*") if path.is_file()}
    report = run(capsys, "evaluate", *where, "--begin", END_MS, "--end", JUDGED_MS, "--lineage", lineage)
    assert {path: path.read_bytes() for path in (log / lineage).rglob("*") if path.is_file()} == before
    inside = [r for r in RECORDS if END_MS <= r["event_ms"] < JUDGED_MS and r["weights"][JUDGED] > 0]
    assert report["examples"] == len(inside) and report["candidate"]["auc"] > 0.5
    assert run(capsys, "evaluate", *where, "--begin", END_MS, "--end", JUDGED_MS, "--lineage", lineage) == report


def test_what_is_missing_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = ["--source", SOURCE, "--log", str(tmp_path / "log"), "--archive", str(tmp_path / "none")]
    days = ["--begin", "5", "--end", "9"]
    assert warm_start.main(["train", *where, *days]) == 2
    assert "there is no archive" in caplog.text
    assert warm_start.main(["evaluate", *where, *days, "--lineage", "000001-00000000"]) == 2
    assert "no warm start began lineage 000001-00000000" in caplog.text
    assert warm_start.main(["train", *where, "--begin", "9", "--end", "5"]) == 2
    assert "--end is 5, allowed is later than --begin, 9" in caplog.text
