"""The batch pass: learns a source's history once, in its order, and begins a new lineage with it as the first base.

    python -m training.learn.batch_pass --source simulator --log var/log

It scores each example before it learns it, and reports the AUC of the last tenth of the history. SERVING moves to the
new lineage when its base exists.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.status import Status

from common import process
from delta_log.log import Log
from delta_log.manifest import Manifest
from delta_log.writer import Writer
from streaming.example import Batch, batches
from streaming.growth import Declarations
from streaming.source import Source, load
from training.learn.learner import Learner, Settings
from training.learn.state import State
from training.models.model import DEFAULT
from training.models.model import load as load_model

log = process.logger("batch")

READ_AT_ONCE = 8192
"""Exposures decoded at a time."""


def learn(state: State, history: Iterable[Batch]) -> Iterator[int]:
    """Learns the batches in order. Yields the number of exposures learned so far."""
    done = 0
    for batch in history:
        state.learn(batch)
        done += batch.size
        yield done


def begin(state: State, delta_log: Log, positions: Mapping[str, Any]) -> Manifest:
    """Writes base-0 of a new lineage, whose data ends at `positions`."""
    Declarations(delta_log.path).keep(state.declaration)
    with Writer(delta_log, delta_log.new_lineage()) as writer:
        cut = state.cut(positions, whole=True, digest=True)
        base = writer.first_base(cut)
        state.committed(cut)
    return base


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    return process.run(lambda: _begin(args))


def _begin(args: argparse.Namespace) -> None:
    source = load(args.source)
    model = load_model(args.model, source.declaration, args.seed)
    state = State(Learner(model, Settings(args.batch, args.seed)), args.source)
    if not args.untrained:
        _train(state, source, args.epochs)
    delta_log = Log(args.log)
    base = begin(state, delta_log, {})
    delta_log.serve(base.lineage)
    rows = {name: info.total for name, info in base.tables.items()}
    log.info("%s/%s: rows %s, %.1f MB, serving", base.lineage, base.name, rows, base.bytes / 1e6)


def _train(state: State, source: Source, epochs: int) -> None:
    gc.freeze()  # a history makes many objects: the collections that they cause pass over TensorFlow's
    started, exposures = time.monotonic(), 0
    for epoch in range(epochs):
        history = batches(source.history(), state.declaration, READ_AT_ONCE)
        exposures = show(learn(state, history), f"epoch {epoch + 1} of {epochs}")
    if not exposures:
        log.info("the history is empty: the base is untrained")
        return
    figures = state.tested.figures(last=max(exposures // 10, 1))
    text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items()) or "no figures"
    per_second = epochs * exposures / (time.monotonic() - started)
    log.info("%d exposures, %d/s; last tenth, test then train: %s", exposures, per_second, text)


def show(counts: Iterator[int], title: str) -> int:
    """Shows the counts while they come, on one line of a terminal or else in a log line each 5 s. Returns the last."""
    done, shown_at = 0, time.monotonic()
    if sys.stderr.isatty():
        with Status(title, console=Console(stderr=True)) as status:
            for done in counts:
                status.update(f"{title}: {done:,} exposures")
        return done
    for done in counts:
        if time.monotonic() - shown_at > 5:
            log.info("%s: %d exposures", title, done)
            shown_at = time.monotonic()
    return done


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = process.Arguments(
        "training.learn.batch_pass",
        "Learn a source's history in one pass and begin a new lineage with it as base-0.",
        epilog="Then: python -m training.learn.online --source SOURCE --log LOG --kafka HOST:PORT",
    )
    parser.shared("source", "log")
    model = "a module of training/models and its settings, as in deepfm?dim=8 (default: %(default)s)"
    parser.shared("model", default=DEFAULT, help=model)
    parser.add_argument("--untrained", action="store_true", help="begin with an empty base, from the declaration alone")
    for name, default, text in (("epochs", 1, "passes over the history"), ("batch", Settings.batch, "examples a step")):
        help_text = f"{text} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=process.at_least(1), default=default, metavar="N", help=help_text)
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
