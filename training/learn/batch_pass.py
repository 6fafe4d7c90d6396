"""The batch pass: a source's history, learned once in its order, becomes the first base of a new lineage.

    python -m training.learn.batch_pass --source simulator --log var/log

The base is test-then-trained: the AUC it prints is of the last tenth of the history, scored before it was learned.
SERVING moves to the new lineage when its base exists.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from delta_log.log import Log
from delta_log.manifest import LogError, Manifest
from delta_log.writer import Writer
from streaming.example import Batch, batches
from streaming.source import Source, load
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.models.model import DEFAULT
from training.models.model import load as load_model

log = logging.getLogger("batch")

READ_AT_ONCE = 8192
"""Exposures decoded at a time."""


def learn(state: State, history: Iterable[Batch]) -> Iterator[int]:
    """Learns the batches in order; yields the number of exposures learned so far."""
    done = 0
    for batch in history:
        state.learn(batch)
        done += batch.size
        yield done


def begin(state: State, delta_log: Log, positions: Mapping[str, Any]) -> Manifest:
    """base-0 of a new lineage, whose data ends at `positions`."""
    with Writer(delta_log, delta_log.new_lineage()) as writer:
        cut = state.cut(positions, whole=True, digest=True)
        base = writer.first_base(cut)
        state.committed(cut)
    return base


def publish(state: State, delta_log: Log) -> Manifest:
    """base-0 of a new lineage, and the serving pointer moved to it."""
    base = begin(state, delta_log, {})
    delta_log.serve(base.lineage)
    return base


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    _say_plainly()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # nothing exists before its manifest: there is no undoing
    try:
        source = load(args.source)
        state = State(
            Learner(load_model(args.model, source.declaration, args.seed), Settings(args.batch, args.seed)), args.source
        )
        if not args.untrained:
            state = _trained(state, source, args.epochs)
        base = publish(state, Log(args.log))
    except (ValueError, LogError) as e:
        log.error("%s", e)
        return 2
    except KeyboardInterrupt:
        return 0
    rows = {name: info.total for name, info in base.tables.items()}
    log.info("%s/%s: rows %s, %.1f MB, serving", base.lineage, base.name, rows, base.bytes / 1e6)
    return 0


def _trained(state: State, source: Source, epochs: int) -> State:
    started, done = time.monotonic(), 0
    for epoch in range(epochs):
        history = batches(source.history(), state.declaration, READ_AT_ONCE)
        done = show(learn(state, history), f"epoch {epoch + 1} of {epochs}")
    if not done:
        log.info("the history is empty: the base is untrained")
        return state
    figures = state.tested.figures(last=max(done // 10, 1))
    said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    seconds = time.monotonic() - started
    log.info("%d exposures, %d/s; last tenth, test then train: %s", done, epochs * done / seconds, said or "no figures")
    return state


def show(counts: Iterator[int], title: str) -> int:
    """The last of the counts; they are shown as they go by: one moving line on a terminal, else a line each 5 s."""
    done, said = 0, time.monotonic()
    if sys.stderr.isatty():
        with Status(title, console=Console(stderr=True)) as status:
            for done in counts:
                status.update(f"{title}: {done:,} exposures")
        return done
    for done in counts:
        if time.monotonic() - said > 5:
            log.info("%s: %d exposures", title, done)
            said = time.monotonic()
    return done


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "training.learn.batch_pass",
        description="Learn a source's history in one pass and begin a new lineage with it as base-0.",
        epilog="Then: python -m training.learn.online --source SOURCE --log LOG --kafka HOST:PORT",
    )
    parser.add_argument("--source", required=True, help="kuairand, simulator?seed=7, a module, or a path to a .py file")
    parser.add_argument("--log", required=True, type=Path, metavar="DIR", help="the delta log's folder")
    parser.add_argument(
        "--model",
        default=DEFAULT,
        help="a module of training/models and its settings: deepfm?dim=8 (default: %(default)s)",
    )
    parser.add_argument("--untrained", action="store_true", help="begin with an empty base, from the declaration alone")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the history (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=Settings.batch, help="examples a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights (default: %(default)s)")
    args = parser.parse_args(argv)
    for name, least in (("epochs", 1), ("batch", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}, allowed is {least} or more")
    return args


def _say_plainly() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
