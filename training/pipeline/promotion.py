"""The step `promote` of a warm start: a lineage that the gate accepts learns to the topic's head, and is served."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from common import process
from common.errors import Refused
from delta_log.log import Log
from training.pipeline import candidates
from training.record import registry

log = process.logger("warm_start")


@dataclass(frozen=True)
class Gate:
    """The figures that a candidate must reach.

    Its AUC may be lower than the served one by less than `tolerance`. Its mean score / rate lies between
    1 / `calibration` and `calibration`. So does the mean expected value / mean value of each value task that has
    `least_examples` positives.
    """

    tolerance: float = 0.01
    calibration: float = 1.25
    least_examples: int = 200

    def refusals(self, report: dict[str, Any]) -> list[str]:
        """One text for each figure that is not allowed: its value, and what is allowed. Empty if all are allowed."""
        refusals = []
        if report["examples"] < self.least_examples:
            refusals.append(f"examples is {report['examples']}, allowed is {self.least_examples} or more")
        low, calibration = report["low"], report["candidate"]["calibration"]
        if low is None or low <= -self.tolerance:
            value = "unknown (no positives, or no negatives)" if low is None else f"{low:.4f}"
            refusals.append(
                f"low, the lower bound of candidate - served AUC, is {value}, allowed is above {-self.tolerance:g}"
            )
        allowed = f"{1 / self.calibration:.3g} to {self.calibration:.3g}"
        if calibration is None or not self._is_calibrated(calibration):
            value = "unknown (no positives)" if calibration is None else f"{calibration:.3f}"
            refusals.append(f"calibration, the candidate's mean score / rate, is {value}, allowed is {allowed}")
        for task, figures in report["tasks"].items():
            of_value = figures.get("candidate_calibration")
            enough = figures["positives"] >= self.least_examples
            if of_value is not None and enough and not self._is_calibrated(of_value):
                text = f"calibration of {task}, the candidate's mean expected value / mean value,"
                refusals.append(f"{text} is {of_value:.3f}, allowed is {allowed}")
        return refusals

    def _is_calibrated(self, ratio: float) -> bool:
        return 1 / self.calibration <= ratio <= self.calibration

    def settings(self) -> dict[str, float]:
        return asdict(self)


def promote(args: argparse.Namespace) -> dict[str, Any]:
    """Asks the gate, lets the lineage learn to the head of the topic, and serves it.

    With --force it serves any lineage, without the gate.
    """
    from training.learn.online import Pace, Setup, catch_up  # Kafka's client, which the other steps do not need

    delta_log = Log(args.log)
    gate = Gate(args.tolerance, args.calibration, args.least_examples)
    before = delta_log.serving()
    if not args.force:
        report = candidates.read(delta_log, args.lineage).get("evaluation")
        if report is None:
            raise ValueError(
                f"{args.lineage} is not evaluated: run python -m training.pipeline.warm_start evaluate first"
            )
        if refusals := gate.refusals(report):
            raise Refused(
                f"{args.lineage} is not promoted: {'; '.join(refusals)}. The served lineage stays. Learn from more"
                " (days, or a longer interval), judge on more (judge_end), or set tolerance or calibration"
            )
    if before != args.lineage:
        setup = Setup(args.source, args.log, args.kafka, args.mlflow, pace=Pace(60_000, keep_lineages=1_000_000))
        if not catch_up(setup, args.lineage, process.stopping()):
            log.error("%s did not reach the head of the topic; %s still serves", args.lineage, before)
            raise KeyboardInterrupt  # nothing but a signal ends it before the head
        delta_log.serve(args.lineage)
        log.info("%s is served, before it was %s", args.lineage, before)
    result = {"lineage": args.lineage, "before": before, "gate": "forced" if args.force else gate.settings()}
    if args.mlflow != "none":
        client = registry.client_of(args.mlflow)
        base = delta_log.manifest(args.lineage, "base", delta_log.seqs(args.lineage, "base")[0])
        run = registry.run_of(client, args.source, args.lineage)
        result["version"] = registry.register(client, args.source, run, base, registry.CHAMPION)
    return result
