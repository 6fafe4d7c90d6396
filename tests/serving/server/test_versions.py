"""The versions of a model server: loaded and unloaded as their folders come and go, and as the server ends."""

from __future__ import annotations

import os
import shutil
import threading
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from serving.replica import RefusedCall
from tests.support.lineage import TOKEN, request
from tests.support.rig import BASE, Rig, SharedServer
from tests.support.wait import until


def status(rig: Rig) -> dict[int, tuple[int, str]]:
    channel = grpc.insecure_channel(f"127.0.0.1:{rig.port}")
    r = get_model_status_pb2.GetModelStatusRequest()
    r.model_spec.name = rig.model
    states = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(r, timeout=10).model_version_status
    channel.close()
    return {v.version: (v.state, v.status.error_message) for v in states}


def test_versions_come_and_go(rig: Rig) -> None:
    until(lambda: status(rig) == {BASE: (30, "")}, "the first version AVAILABLE", 90)
    # A broken newer one: the status has its error, and the old one still serves.
    (rig.served / str(BASE + 1)).mkdir()
    until(lambda: status(rig).get(BASE + 1, (0, ""))[0] == 50, "the broken version at END")
    assert "Could not find SavedModel" in status(rig)[BASE + 1][1] and status(rig)[BASE] == (30, "")
    # The same for one whose warm-up fails, since its journal is broken.
    aside = rig.folder / "aside"
    shutil.copytree(rig.served / str(BASE), aside)
    (aside / "assets" / "journal.bin").write_bytes(b"\0" * 8)
    aside.rename(rig.served / str(BASE + 2))
    until(lambda: status(rig).get(BASE + 2, (0, ""))[0] == 50, "the version with a broken journal at END", 90)
    assert "journal is not whole" in status(rig)[BASE + 2][1] and status(rig)[BASE] == (30, "")
    # A good one in its place is loaded at once, then the old one is unloaded.
    shutil.copytree(rig.served / str(BASE), aside)
    (rig.served / str(BASE + 2)).rename(rig.folder / "broken")
    aside.rename(rig.served / str(BASE + 2))
    until(lambda: status(rig)[BASE][0] == 50 and status(rig)[BASE + 2] == (30, ""), "the new version alone", 50)
    assert rig.seq(BASE + 2) == 0 and rig.seq(BASE) == -1


def test_the_token_is_in_no_error(rig: Rig, shared_server: SharedServer) -> None:
    (rig.served / str(BASE) / "assets" / "token").write_text(TOKEN)
    os.chmod(rig.served / str(BASE) / "assets" / "token", 0o600)
    until(lambda: rig.seq() == 0, "the version is AVAILABLE", 90)
    call = {"lineage": rig.lineage.name, "seq": np.int64(1), "token": "guess", **rig.lineage.dense}
    with pytest.raises(RefusedCall) as refused:
        rig.replica.call(BASE, "apply_dense", call)
    assert TOKEN not in str(refused.value) and "guess" not in str(refused.value)
    assert TOKEN not in shared_server.process.text()


def test_a_request_under_way_is_answered_at_the_end(rig: Rig, shared_server: SharedServer) -> None:
    until(lambda: rig.seq() == 0, "the version is AVAILABLE", 90)
    x = request(rig.lineage, 20_000)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(rig.replica.call(BASE, "serving_default", x))) for _ in range(4)
    ]
    for t in threads:
        t.start()
    until(lambda: len(answers) >= 1, "the first of four answered")
    assert shared_server.process.end() == 0
    for t in threads:
        t.join()
    assert len(answers) >= 1 and all(len(a["click"]) == 20_000 for a in answers)
