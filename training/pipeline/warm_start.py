"""A warm start: days of the archive, learned in one pass, begin a lineage, which is evaluated and then takes over.

    python -m training.pipeline.warm_start train    --source S --log L --archive A --begin MS --end MS
    python -m training.pipeline.warm_start evaluate --source S --log L --archive A --begin MS --end MS --lineage X
    python -m training.pipeline.warm_start promote  --source S --log L --lineage X --kafka H:P

`train` begins the lineage. Its base names the positions in Kafka at which its data end. `evaluate` scores a later
interval with that base, beside the scores that were served. `promote` asks the gate, learns from those positions to the
topic's head while the old lineage serves, then moves SERVING. The trainer and the syncs follow (docs/warm-start.md).

Each step prints one JSON object. A step that runs again finds what it did before. Times are ms of event time,
begin <= t < end. Exit code 2: the input is wrong or missing; 3: the gate refused, or there was nothing to learn.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

from common import process
from common.errors import InputError
from delta_log.log import Log
from training.learn.learner import Settings
from training.pipeline import candidates
from training.pipeline.evaluation import evaluate
from training.pipeline.promotion import Gate, promote
from training.pipeline.train import train
from training.record import registry

STEPS = {"train": train, "evaluate": evaluate, "promote": promote}


def main(argv: list[str] | None = None) -> int:
    args = _arguments().parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    if args.step != "promote" and args.end <= args.begin:
        raise InputError(f"--end is {args.end}, allowed is later than --begin, {args.begin}")
    registry.require_mlflow(args.mlflow)  # before hours of training
    # A rollback by --force does not wait for a training that runs.
    with nullcontext() if args.step == "promote" and args.force else candidates.one_at_a_time(Log(args.log)):
        result = STEPS[args.step](args)
    print(json.dumps(result), flush=True)


def _arguments() -> process.Arguments:
    common = process.Arguments("of every step", add_help=False)
    common.shared("source", "log", "mlflow")
    days = process.Arguments("of steps that read the archive", add_help=False)
    days.shared("archive")
    days.shared("begin", "end", type=int, metavar="MS", help="event time, ms; begin <= t < end")
    days.add_argument("--batch", type=process.at_least(1), default=Settings.batch, metavar="N",
                      help="examples a step (default: %(default)s)")  # fmt: skip
    days.add_argument("--seed", type=int, default=0, help="of weights and bootstrap (default: %(default)s)")
    candidate = process.Arguments("of steps after train", add_help=False)
    candidate.add_argument("--lineage", required=True, help="the candidate, as `train` named it")

    parser = process.Arguments("training.pipeline.warm_start", __doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("train", parents=[common, days], help="learn the days, begin a lineage")
    step.add_argument("--examples", type=Path, action="append", metavar="PARQUET",
                      help="a file or folder of examples that were sampled from the archive's interval (default: all of"
                      " the interval's); may be repeated")  # fmt: skip
    step.add_argument("--from", dest="begin_from", choices=("none", "serving"), default="none",
                      help="begin untrained, or with the served lineage's base (default: %(default)s)")  # fmt: skip
    step.shared("model")
    step.add_argument("--keep-lineages", type=process.at_least(1), default=5, metavar="N",
                      help="old lineages to keep (default: %(default)s)")  # fmt: skip
    steps.add_parser("evaluate", parents=[common, days, candidate], help="score a later interval")
    step = steps.add_parser("promote", parents=[common, candidate], help="ask the gate, learn to the head, serve it")
    step.shared("kafka")
    step.add_argument("--force", action="store_true", help="without the gate: any lineage, also an older one")
    for name, value in Gate().settings().items():
        kind = process.at_least(1.0) if name == "calibration" else type(value)
        step.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, metavar="X",
                          help="of the gate (default: %(default)s)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
