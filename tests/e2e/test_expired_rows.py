"""Clips that nobody was shown for ten minutes of event time leave the trainer's table and the served model; every
process is real, and each wait is for a state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from delta_log.log import Log
from delta_log.manifest import Manifest
from serving.client import Scorer
from streaming import topics
from streaming.source import Exposure, load
from tests.support.broker import Broker
from tests.support.feeding import Sender, examples
from tests.support.metrics import metric
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.wait import until
from training.learn import batch_pass as batch

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = "simulator?seed=3&minutes=20&history_minutes=2&rate=3&clips=100&viewers=100&new_clips=5&expire_minutes=10"
LINEAGE_ENV = {"MINUTEHAND_WRITE_TOKEN": "a token of the test"}


class Loop:
    """Broker, trainer, sync and model server on one log."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        self.log, self.folder = Log(folder / "log"), folder
        self.serving, self.metrics = free_port(), free_port()
        self.processes = [
            self.start("training.learn.online", "--source", SOURCE, "--log", str(self.log.path), "--kafka", bootstrap,
                       "--sync-every-ms", "500", "--digest", "--port", str(self.metrics)),
            self.start("serving.sync.sync", "--source", SOURCE, "--log", f"ranker={self.log.path}", "--models",
                       str(folder / "models"), "--serving", f"127.0.0.1:{self.serving}"),
            self.start("serving.server.model_server", f"--port={self.serving}", "--model_name=ranker",
                       f"--model_base_path={folder / 'models/ranker/served'}", "--file_system_poll_wait_seconds=0.2"),
        ]  # fmt: skip
        self.scorer = Scorer([f"127.0.0.1:{self.serving}"], "ranker", load(SOURCE).declaration)

    def start(self, module: str, *words: str) -> Process:
        return Process(self.folder / f"{module}.log", module, *words, env=LINEAGE_ENV)

    def newest(self) -> Manifest:
        lineage = self.log.serving()
        assert lineage is not None
        seqs = self.log.seqs(lineage, "delta")
        return self.log.manifest(lineage, "delta", seqs[-1]) if seqs else self.log.manifest(lineage, "base", 0)

    def rows(self, table: str) -> tuple[float, float]:
        """Rows of the trainer's table and the bytes it holds, as /metrics reports them."""
        rows, held = (metric(self.metrics, f"minutehand_trainer_table_{x}", table=table) for x in ("rows", "bytes"))
        return rows, held

    def served(self) -> int:
        try:
            return int(self.scorer.status()["seq"])
        except Exception:  # not up yet
            return -1

    def close(self) -> None:
        for process in self.processes:
            process.end()
        self.scorer.close()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Loop, Sender]]:
    assert batch.main(["--source", SOURCE, "--log", str(tmp_path / "log")]) == 0
    with Broker() as broker:
        topics.create(broker.bootstrap)
        running, sender = Loop(tmp_path, broker.bootstrap), Sender(broker.bootstrap)
        yield running, sender
        sender.close()
        running.close()


def scores_of(loop: Loop, shown: Exposure, clips: list[int]) -> list[dict[str, float]]:
    """What the served model says of an exposure, had it been of each of `clips`."""
    found, _ = loop.scorer.score([shown.features | {"clip": clip} for clip in clips])
    return [{task: values[i] for task, values in found.items()} for i in range(len(clips))]


def test_rows_expire_in_the_trainer_and_are_gone_from_serving_with_their_delta(loop: tuple[Loop, Sender]) -> None:
    running, sender = loop
    source = load(SOURCE)
    live = list(source.live())
    first, last = live[:150], [e for e in live if e.ts_ms >= live[0].ts_ms + 15 * 60_000][:150]
    known = {int(e.features["clip"]) for e in [*source.history(), *first]}
    old = sorted(known - {int(e.features["clip"]) for e in last})
    unknown = 4_711
    assert len(old) > 20 and unknown not in known

    def learned(exposures: list[Exposure]) -> Manifest:
        """All of them sent, learned and served; the newest manifest."""
        records = list(examples(exposures, source.declaration))
        now = max(r["event_ms"] for r in records)
        sender.send(records, progress_ms=now)
        until(lambda: running.newest().learned_until_ms >= now, "learned")
        return running.newest()

    before = learned(first)
    assert before.tables["clip"].total == len(known)
    until(lambda: running.served() >= before.seq, "served")
    until(lambda: running.rows("clip")[0] == len(known), "the gauge")
    held = running.rows("clip")[1]
    # Each clip against the unknown one at the same place of a request: a place may round its sums in another order.
    strangers = [unknown] * len(old)
    of_old, of_unknown = (scores_of(running, first[0], clips) for clips in (old, strangers))
    assert sum(a != b for a, b in zip(of_old, of_unknown, strict=True)) > len(old) / 2

    learned(last)
    gone = until(lambda: (m := running.newest()).tables["clip"].total < len(known) and m, "a delta without them")
    until(lambda: running.served() >= gone.seq, "the delta that removed them is served")
    of_old, of_unknown = (scores_of(running, first[0], clips) for clips in (old, strangers))
    assert of_old == of_unknown

    left = len({int(e.features["clip"]) for e in last})
    assert gone.tables["clip"].total == left and left < len(known)
    assert gone.tables["viewer"].removed == 0
    until(lambda: running.rows("clip")[0] == left, "the gauge")
    assert running.rows("clip")[1] >= held  # the memory is kept for other rows
    newest = running.newest()
    until(lambda: running.served() == newest.seq, "all is served")
    served = {name: str(int(value.ravel()[0])) for name, value in running.scorer.call("digest", {}).items()}
    assert served == newest.digest
    removed = sum(m.tables["clip"].removed for m in running.log.manifests(newest.lineage))
    assert removed == len(old)
