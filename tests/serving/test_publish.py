"""A base on demand: compacted, installed, watched until it serves; taken back where it cannot be loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from delta_log.log import Log
from delta_log.manifest import LogError
from delta_log.publication import Publication
from serving.publish import Failed, Place, publish
from serving.replica import Replica
from serving.sync.metrics import Metrics
from serving.sync.model_sync import ModelSync
from tests.support import PROJECT
from tests.support.lineage import SOURCE, TOKEN, D, request
from tests.support.replica import FakeReplica
from tests.support.rig import BASE, Rig
from tests.support.wait import until


def asked(rig: Rig, *more: str) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-m", "serving.publish", "--log", str(rig.folder / "log")]
    command += ["--replica", f"{rig.models}=127.0.0.1:{rig.port}", "--model", rig.model, *more]
    done = subprocess.run(command, cwd=PROJECT, timeout=200, stdout=subprocess.PIPE)
    return done.returncode, json.loads(done.stdout or "{}")


def test_a_base_is_published_and_there_already_the_second_time(rig: Rig) -> None:
    rig.start_sync()
    rig.lineage.delta()
    rig.lineage.delta()
    rig.stands_at(2)
    rig.lineage.writer.close()  # no trainer: the publisher compacts it itself
    code, result = asked(rig)
    assert (code, result["state"], result["seq"], result["version"]) == (0, "published", 2, BASE + 2)
    assert [r["address"] for r in result["replicas"]] == [f"127.0.0.1:{rig.port}"]
    assert rig.seq(BASE + 2) == 2 and rig.digest(BASE + 2) == rig.lineage.digest()
    until(lambda: rig.seq(BASE) == -1, "the version before to be unloaded")
    assert asked(rig)[1]["version"] == BASE + 2 and rig.log_bases() == [0, 2]
    # Another replica is away: that is no reason to take from this one what it serves.
    here, away = Place(rig.models, rig.replica), Place(rig.folder / "none", Replica("127.0.0.1:1", "ranker"))
    result = publish(rig.lineage.log, [here, away], 1, threading.Event())
    assert result["state"] == "rolled back" and "127.0.0.1:1: version" in str(result["reason"])
    assert Publication.read(rig.lineage.log) == Publication(rig.lineage.name, -1) and rig.seq(BASE + 2) == 2


def test_a_version_that_does_not_load_is_taken_back_and_the_old_one_serves_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = ModelSync(D, SOURCE, Log(rig.folder / "log"), rig.models, rig.replica, TOKEN, Metrics(CollectorRegistry()))
    prepare, stop = sync.versions.prepare, threading.Event()

    def damage(exported: Path, lineage: str) -> None:  # before the model server can see it
        prepare(exported, lineage)
        (exported / "saved_model.pb").write_bytes(b"damaged")

    monkeypatch.setattr(sync.versions, "prepare", damage)

    def loop() -> None:
        while not stop.wait(0.05):
            sync.step()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        rig.lineage.delta()
        rig.stands_at(1)
        rig.lineage.writer.close()
        x, place = request(rig.lineage), Place(rig.models, rig.replica)
        results: list[dict[str, object]] = []
        publisher = threading.Thread(target=lambda: results.append(publish(sync.log, [place], 120, threading.Event())))
        publisher.start()
        answers = 0
        while publisher.is_alive():
            assert len(rig.replica.call(BASE, "serving_default", x)["click"]) == 20
            answers += 1
            publisher.join(0.02)
        (result,) = results
        assert result["state"] == "rolled back" and f"version {BASE + 1}" in str(result["reason"]) and answers > 10
        assert not place.has(BASE + 1) and Publication.read(sync.log) == Publication(rig.lineage.name, -1, (1,))
        until(lambda: sync.reason() == "", "sync to be well again")
        rig.lineage.open()
        rig.lineage.delta()
        rig.stands_at(2)
        assert rig.digest() == rig.lineage.digest() and not place.has(BASE + 1)
    finally:
        stop.set()
        thread.join(30)
        sync.close()


def test_the_error_of_an_earlier_try_is_none_of_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server still reports it, until it has seen the new folder of the same number."""
    replica = FakeReplica(tmp_path / "served")
    replica.up, replica.errors, place = True, {BASE: "truncated variables"}, Place(tmp_path, replica)
    assert not place.serves(BASE, 0), "it was rolled back: its folder is gone"
    (tmp_path / "served" / str(BASE)).mkdir(parents=True)
    assert not place.serves(BASE, 0)
    monkeypatch.setattr("serving.publish.SEEN_S", 0.0)
    with pytest.raises(Failed, match="truncated variables"):
        place.serves(BASE, 0)


def test_what_is_not_there_is_named(own_rig: Rig, tmp_path: Path) -> None:
    place = Place(own_rig.models, own_rig.replica)
    with pytest.raises(LogError, match="serves no lineage yet"):
        publish(Log(tmp_path / "nothing"), [place], 1, threading.Event())
    # A lineage whose writer lives but does not compact, and a replica that nobody serves.
    own_rig.lineage.delta()
    result = publish(own_rig.lineage.log, [place], 1, threading.Event())
    assert result["state"] == "rolled back" and "no base at 1" in str(result["reason"])
    done = subprocess.run(
        [sys.executable, "-m", "serving.publish", "--log", "x", "--replica", "127.0.0.1:1"],
        cwd=PROJECT, timeout=60, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "allowed is MODELS_FOLDER=HOST:PORT" in done.stderr
