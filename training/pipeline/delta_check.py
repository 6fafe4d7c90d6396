"""Whether the deltas of the lineage that serves keep their contract, from their manifests' statistics.

    python -m training.pipeline.delta_check --log DIR --docs DIR

Exit 2: the last line names the expectation, the column, what was seen and what is allowed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from delta_log.log import Log
from delta_log.manifest import LogError
from training.pipeline import expectations as contracts
from training.pipeline.validation import check, docs_arguments, report

log = logging.getLogger("delta_check")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("training.pipeline.delta_check", description="Judge the serving lineage's deltas.")
    parser.add_argument("--log", required=True, type=Path, metavar="DIR", help="the delta log's folder")
    docs_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    try:
        delta_log = Log(args.log)
        lineage = delta_log.serving()
        if lineage is None:
            raise LogError(f"{args.log}: no lineage serves: there is nothing to publish")
        base = delta_log.manifest(lineage, "base", max(delta_log.seqs(lineage, "base"), default=0))
        deltas = delta_log.follow(base)
    except LogError as e:
        log.error("%s", e)
        return 2
    log.info("%s: %d deltas after its newest base", lineage, len(deltas))
    facts = {"lineage": lineage, "deltas": len(deltas)}
    if not deltas:
        return report(None, lineage, facts, log)
    verdict = check([contracts.deltas(deltas)], args.docs / f"deltas-{lineage}")
    return report(verdict, lineage, facts, log, args.docs_at)


if __name__ == "__main__":
    sys.exit(main())
