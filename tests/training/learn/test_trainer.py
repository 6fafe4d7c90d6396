"""The trainer with a topic in memory: dead letters that no broker acknowledges, a full disk, an end that is bounded."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka.errors import KafkaError

from common import disk, process
from delta_log.log import Log
from delta_log.verification import verify
from delta_log.writer import Writer
from streaming.example import Batch, batches
from streaming.source import load
from tests.support.disk import fill, small_disk
from tests.support.wait import until
from training.learn import trainer
from training.learn.learner import Learner, Settings
from training.learn.online import writer_of
from training.learn.state import State
from training.learn.trainer import Gauges, Pace, Trainer
from training.models.model import load as load_model
from training.record.tracking import Tracking

SOURCE = "simulator?seed=5&minutes=5"
SIMULATOR = load(SOURCE)
HISTORY = list(islice(batches(SIMULATOR.history(), SIMULATOR.declaration, 300), 6))


class Topic:
    """In place of Feed: batches in memory. Its broker acknowledges dead letters, or not, or does not answer."""

    dead = 0

    def __init__(self) -> None:
        self.reader = self
        self.batches: deque[Batch] = deque()
        self.offset = 0
        self.acknowledges = self.answers = True

    def poll(self, timeout_ms: int, most: int) -> list[Batch]:
        time.sleep(0 if self.batches else timeout_ms / 1000)
        self.offset += bool(self.batches)
        return [self.batches.popleft()] if self.batches else []

    def positions(self) -> dict[str, Any]:
        time.sleep(0 if self.answers else 60)
        if not self.acknowledges:
            raise KafkaError("examples.dead has not acknowledged 1 line")
        return {"offsets": {"0": self.offset}}

    def read_until_ms(self) -> int:
        return -1

    def lag(self) -> int:
        return len(self.batches)


class Rig:
    """A trainer of a new lineage, beside a state that learns the same batches without it."""

    def __init__(self, path: Path, model: str) -> None:
        self.log, self.topic, self.straight = Log(path), Topic(), a_state(model)
        state, self.gauges = a_state(model), Gauges()
        self.writer = Writer(self.log, self.log.new_lineage())
        cut = state.cut({"offsets": {"0": 0}}, whole=True)
        self.writer.first_base(cut)
        state.committed(cut)
        self.service = process.Service(0, self.gauges.registry, self.gauges.errors, end_within_s=0.3)
        self.service.health.reason = ""
        tracking = Tracking("none", self.log, self.writer.lineage, SOURCE)
        feed: Any = self.topic
        self.trainer = Trainer(state, self.writer, feed, Pace(20), tracking, self.gauges, self.service.health)

    def send(self, *sent: Batch) -> None:
        for batch in sent:
            self.straight.learn(batch)
            self.topic.batches.append(batch)

    def metric(self, name: str) -> float:
        return self.gauges.registry.get_sample_value(f"minutehand_trainer_{name}_total") or 0.0

    def until(self, holds: Any, text: str) -> None:
        until(lambda: self.trainer.turn() or holds(), text)


def a_state(model: str) -> State:
    return State(Learner(load_model(model, SIMULATOR.declaration), Settings(batch=128)), SOURCE)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """The folder of `rig`, on a disk of a megabyte."""
    with small_disk(tmp_path):
        yield tmp_path


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Its model is the logistic one, or the parameter."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(trainer, "RETRY_S", 0.01)
    made = Rig(tmp_path, getattr(request, "param", "logistic"))
    yield made
    made.writer.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_it_learns_on_while_a_dead_letter_is_not_acknowledged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.topic.acknowledges = False
    rig.send(*HISTORY[:2])
    rig.until(lambda: rig.metric("errors") >= 2, "cuts without a delta")
    rig.send(*HISTORY[2:4])
    rig.until(lambda: rig.metric("examples") == 4 * 300 and rig.metric("errors") >= 4, "all to be learned")
    reason = "no delta can be written: KafkaError: examples.dead has not acknowledged 1 line"
    assert rig.service.health.reason == reason
    assert caplog.messages.count(f"{reason}; tried again each 0 s") == 1
    assert (rig.log.chain(rig.writer.lineage)[1], rig.metric("deltas")) == ([], 0)

    rig.topic.acknowledges = True
    rig.until(lambda: rig.metric("deltas") == 1, "the delta")
    assert rig.service.health.reason == ""
    (delta,) = rig.log.chain(rig.writer.lineage)[1]
    count, total = rig.straight.learned
    assert delta.learned == {"count": count, "sum": str(total)} and delta.positions == {"offsets": {"0": 4}}
    assert delta.metrics["examples"] == 4 * 300 and verify(rig.log, rig.writer.lineage) == []


def test_it_learns_on_and_says_so_while_the_disk_is_full(
    small: Path, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    filled = fill(small)
    rig.send(*HISTORY[:2])
    rig.until(lambda: rig.metric("errors") >= 2, "attempts that fail")
    rig.send(*HISTORY[2:4])
    rig.until(lambda: rig.metric("examples") == 4 * 300 and rig.metric("errors") >= 4, "all to be learned")
    reason = rig.service.health.reason
    assert reason.startswith("no delta can be written: [Errno 28] No space left on device: ")
    assert caplog.messages.count(f"{reason}; tried again at the next sync") == 1
    filled.unlink()
    rig.until(lambda: rig.metric("deltas") == 1, "the delta")
    assert rig.service.health.reason == ""
    (delta,) = rig.log.chain(rig.writer.lineage)[1]
    count, total = rig.straight.learned
    assert delta.learned == {"count": count, "sum": str(total)} and delta.metrics["examples"] == 4 * 300
    assert verify(rig.log, rig.writer.lineage) == []


def test_it_begins_when_the_disk_lets_it_and_says_why_it_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []

    def readonly(*_: Any) -> None:
        reasons.append(rig.service.health.reason)
        if len(reasons) == 3:
            monkeypatch.undo()
        raise OSError(errno.EROFS, "Read-only file system", "LOCK")

    monkeypatch.setattr(process, "RETRY_S", 0.01)
    monkeypatch.setattr(disk, "hold", readonly)
    rig.writer.close()
    with writer_of(rig.log, rig.writer.lineage, rig.service, rig.gauges) or rig.writer as writer:
        assert writer is not rig.writer and writer.head == rig.writer.head
    text = f"lineage {writer.lineage} cannot be written: [Errno 30] Read-only file system: 'LOCK'"
    assert reasons == ["", text, text] and rig.metric("errors") == 3


def test_the_lag_is_not_a_number_until_it_is_known() -> None:
    lag = Gauges().registry.get_sample_value("minutehand_trainer_lag_records")
    assert lag is not None and math.isnan(lag)


def test_what_could_not_be_committed_at_the_end_is_learned_again(rig: Rig) -> None:
    rig.send(HISTORY[0])
    rig.until(lambda: rig.metric("deltas") == 1, "a delta")
    rig.topic.acknowledges = False
    rig.send(HISTORY[1])
    rig.until(lambda: not rig.topic.batches, "all to be read")
    assert not rig.trainer.run(threading.Event(), lambda feed: True)
    resumed = a_state("logistic")
    resumed.restore(rig.log, rig.writer.lineage)
    assert resumed.positions == {"offsets": {"0": 1}}
    resumed.learn(HISTORY[1])
    assert resumed.learned == rig.straight.learned


def test_the_end_is_bounded_and_no_thread_writes_after_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()

    def slowly(cut: Any, delta: Any = rig.writer.delta) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        written.set()
        return delta(cut)

    monkeypatch.setattr(rig.writer, "delta", slowly)
    rig.send(HISTORY[0])
    with rig.service:
        rig.trainer.run(rig.service.stopping, lambda feed: False)
    assert rig.service.late and written.is_set() and len(rig.log.chain(rig.writer.lineage)[1]) == 1


def test_the_end_is_bounded_while_no_broker_answers(rig: Rig) -> None:
    began = time.monotonic()
    rig.topic.answers = False
    rig.send(HISTORY[0])
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with rig.service:
        rig.trainer.run(rig.service.stopping, lambda feed: False)
    assert rig.service.late and time.monotonic() - began < 30
    assert rig.log.chain(rig.writer.lineage)[1] == []


@pytest.mark.parametrize("rig", ["mmoe?experts=3&units=4&bottom=8"], indirect=True)
def test_each_delta_has_the_gates_of_an_mmoe_and_a_dead_expert_is_named_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    model = rig.trainer.state.learner.model
    gates = model.dense["gates_kernel"].variable
    for sent, dead in ((1, ""), (2, "1"), (3, "1")):
        gates.assign(np.where(np.arange(3) == 1, -1000.0 * bool(dead), 0.0) * np.ones(gates.shape))
        rig.topic.batches.append(HISTORY[sent])
        rig.until(lambda sent=sent: rig.metric("deltas") == sent, "the delta")
        found = rig.log.chain(rig.writer.lineage)[1][-1].metrics
        for task in SIMULATOR.declaration.tasks:
            of_task = [found[f"gate_{task}_expert{k}"] for k in range(3)]
            assert sum(of_task) == pytest.approx(1, abs=1e-5) and (of_task[1] < 0.01) == bool(dead)
    (warning,) = [message for message in caplog.messages if "is dead" in message]
    assert warning.startswith("delta-000000002: expert 1 is dead: its mean gates are ") and warning.endswith(
        "for one task"
    )
