"""The online trainer: learns from the examples topic as it grows and writes a delta each sync.

    python -m training.learn.online --source simulator --log var/log --kafka 127.0.0.1:9092 --sync-every-ms 60000

It continues where the newest manifest of the lineage ends: a kill loses nothing that was committed, and nothing is
learned twice. While Kafka is down it waits. SIGTERM: a last delta, then exit 0.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from common import process
from delta_log.log import Log
from delta_log.manifest import LogError
from delta_log.writer import Writer
from streaming.example import decode
from streaming.source import load
from training.learn.feed import Feed
from training.learn.growth import continued
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.learn.takeover import AtHead, Moved
from training.learn.trainer import Gauges, Pace, Trainer
from training.models.model import load as load_model
from training.record.tracking import Tracking

__all__ = ["Pace", "Setup", "catch_up", "follow", "main"]

END_WITHIN_S = 10.0
"""The supervisor kills a service 15 s after SIGTERM, and clients of a broker that is down wait for longer."""

log = process.logger("trainer")


@dataclass(frozen=True)
class Setup:
    """The settings of a trainer. `model` "" is the model of the lineage.

    `dense_rate` and `dense_every` are those of streaming/declaration.py `Online`; None is what the source declares.
    """

    source: str
    log: Path
    kafka: str
    mlflow: str = "none"
    model: str = ""
    batch: int = Settings.batch
    dense_rate: float | None = None
    dense_every: int | None = None
    pace: Pace = Pace(60_000)


def follow(setup: Setup, service: process.Service, gauges: Gauges) -> None:
    """Learns the served lineage until the service ends. When SERVING moves, it continues with the new lineage.

    If the source has grown since, a new lineage continues the served one.
    """
    delta_log = Log(setup.log)
    while not service.stopping.is_set():
        lineage = delta_log.serving()
        if lineage is None:
            raise LogError(f"{delta_log.path}: serves no lineage yet (python -m training.learn.batch_pass begins one)")
        service.health.loading(f"loading lineage {lineage}")
        declaration, keep = load(setup.source).declaration, setup.pace.keep_lineages
        lineage = continued(delta_log, lineage, setup.source, declaration, setup.model, keep)
        _learn(setup, lineage, service, gauges, Moved(delta_log, lineage))
        gc.collect()  # the old tables are in cycles of references; the new ones need their memory


def catch_up(setup: Setup, lineage: str, stopping: threading.Event | None = None) -> bool:
    """Learns a lineage to the head of the topic. Returns whether it reached the head before `stopping` was set.

    It removes no lineages, and its deltas count no freshness: the served lineage learns the same examples.
    """
    gauges, head = Gauges(), AtHead()
    setup = replace(setup, pace=replace(setup.pace, keep_lineages=sys.maxsize))
    with process.Service(0, gauges.registry, gauges.errors, ended_by=stopping or threading.Event()) as service:
        committed = _learn(setup, lineage, service, gauges, head, counts_freshness=False)
    if head.reached and not committed:
        raise LogError(f"{setup.log / lineage}: learned to the head of the topic, but its last delta was not written")
    log.info("%s: %s", lineage, "at the head of the topic" if head.reached else "stopped before the head")
    return head.reached


def _learn(
    setup: Setup, lineage: str, service: process.Service, gauges: Gauges, over: Callable[[Feed], bool],
    counts_freshness: bool = True,
) -> bool:  # fmt: skip
    """Learns a lineage until it is over or the service ends. Returns whether the log holds all that was read."""
    gauges.lag.set(math.nan)
    declaration, delta_log = load(setup.source).declaration, Log(setup.log)
    writer = writer_of(delta_log, lineage, service, gauges)
    if writer is None:
        return False
    service.health.loading(f"loading lineage {lineage}")
    with writer:
        base = delta_log.newest_base(lineage)
        rate = declaration.online.dense_rate if setup.dense_rate is None else setup.dense_rate
        settings = Settings(batch=setup.batch, dense_rate=rate)
        learner = Learner(load_model(setup.model or str(base.model), declaration), settings)
        learner.train(decode([], declaration))  # traces the step, which takes seconds: no delta should wait for it
        every = declaration.online.dense_every if setup.dense_every is None else setup.dense_every
        state = State(learner, setup.source, every)
        state.counts_freshness = counts_freshness
        last = state.restore(delta_log, lineage)
        log.info("%s: resumed at %s, %d pairs learned", lineage, last.name, state.learned[0])
        log.info("dense weights learn at %g times their rate, and are served with each %d. delta", rate, every)
        gauges.seq.set(last.seq)
        gauges.learned_until.set(last.learned_until_ms)
        gauges.committed_until.set(last.learned_until_ms)
        feed = service.connected(setup.kafka, lambda: Feed(setup.kafka, declaration, state.positions))
        if feed is None:
            return False
        with closing(feed), Tracking(setup.mlflow, delta_log, lineage, setup.source) as tracking:
            tracking.add(base)
            trainer = Trainer(state, writer, feed, setup.pace, tracking, gauges, service.health)
            return trainer.run(service.stopping, over)


def writer_of(delta_log: Log, lineage: str, service: process.Service, gauges: Gauges) -> Writer | None:
    """Makes the lineage's writer, as soon as the disk lets it; None if the service ends before that."""
    while not service.stopping.is_set():
        try:
            return Writer(delta_log, lineage)
        except OSError as e:
            gauges.errors.inc()
            reason = f"lineage {lineage} cannot be written: {e}"
            if reason != service.health.reason:
                log.error("%s; tried again each %.0f s", reason, process.RETRY_S)
            service.health.reason = reason
            service.stopping.wait(process.RETRY_S)
    return None


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    pace = Pace(args.sync_every_ms, args.base_every, args.keep_bases, args.digest, args.keep_lineages)
    setup = Setup(
        args.source, args.log, args.kafka, args.mlflow, args.model, args.batch, args.dense_rate, args.dense_every, pace
    )
    return process.run(lambda: _serve(setup, args.port))


def _serve(setup: Setup, port: int) -> None:
    gauges = Gauges()
    with process.Service(port, gauges.registry, gauges.errors, END_WITHIN_S) as service:
        follow(setup, service, gauges)
    if service.late:
        log.warning("kafka %s does not answer: ended without a last delta, its examples are learned again", setup.kafka)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = process.Arguments(
        "training.learn.online",
        "Learn the served lineage from the examples topic as it grows, and write a delta each sync.",
        epilog="The log needs a lineage: python -m training.learn.batch_pass --source SOURCE --log LOG begins one.",
    )
    parser.shared("source", "log", "kafka", "model", "mlflow", "port")
    for name, default, text in (
        ("sync-every-ms", 60_000, "a delta each N ms"),
        ("base-every", Pace.base_every, "a base each N deltas"),
        ("keep-bases", Pace.keep_bases, "bases that stay"),
        ("keep-lineages", Pace.keep_lineages, "old lineages that stay"),
        ("batch", Settings.batch, "examples of a step"),
    ):
        help_text = f"{text} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=process.at_least(1), default=default, metavar="N", help=help_text)
    for name, least, text in (
        ("dense-rate", 0.0, "dense weights learn at so many times their rate; 0 holds them"),
        ("dense-every", 1, "dense weights are served with each N-th delta"),
    ):
        help_text = f"{text} (default: what the source declares)"
        parser.add_argument(f"--{name}", type=process.at_least(least), metavar="N", help=help_text)
    parser.add_argument("--digest", action="store_true", help="write the digest of all tables in every delta")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
