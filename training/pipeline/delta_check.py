"""Checks the deltas of the served lineage against their contract, by the statistics in their manifests.

    python -m training.pipeline.delta_check --log DIR --docs DIR

Exit code 2: the last line names the expectation, the column, what was seen and what is allowed.
"""

from __future__ import annotations

import argparse
import sys

from common import process
from delta_log.log import Log
from delta_log.manifest import LogError
from training.pipeline import expectations
from training.pipeline.validation import NOTHING, check, docs_arguments, report

log = process.logger("delta_check")


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("training.pipeline.delta_check", "Judge the served lineage's deltas.")
    parser.shared("log")
    docs_arguments(parser)
    args = parser.parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    delta_log = Log(args.log)
    lineage = delta_log.serving()
    if lineage is None:
        raise LogError(f"{args.log}: no lineage serves: there is nothing to publish")
    base = delta_log.manifest(lineage, "base", max(delta_log.seqs(lineage, "base"), default=0))
    deltas = delta_log.follow(base)
    log.info("%s: %d deltas after its newest base", lineage, len(deltas))
    verdict = check([expectations.deltas(deltas)], args.docs / f"deltas-{lineage}") if deltas else NOTHING
    report(verdict, lineage, {"lineage": lineage, "deltas": len(deltas)}, log, args.docs_at)


if __name__ == "__main__":
    sys.exit(main())
