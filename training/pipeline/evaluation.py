"""The step `evaluate` of a warm start: a candidate's scores of a later interval, beside the scores as served.

The served model kept learning while it served, and so would the candidate. So a copy of it scores each impression at
the time at which it was shown, and learns each example at the time at which it was known (test, then train: progressive
validation, Blum, Kalai and Langford, COLT 1999). The copy is in memory only: the candidate stays as it is.

Both scores are of the same impressions. The report has AUC with a paired bootstrap interval by user, log loss and
calibration. A negative that was kept with probability pi counts 1 / pi times. Of a value task the concordance, the loss
and the calibration are those of its expected value (common/value.py).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common import process, value
from common.auc import auc, compared
from delta_log.log import Log
from delta_log.manifest import Manifest
from streaming.archive.archive import Archive
from streaming.archive.columns import from_table
from streaming.declaration import Declaration
from streaming.example import Batch
from streaming.source import load
from streaming.topics import EXAMPLES
from training.learn.learner import Learner, Settings
from training.learn.metrics import logloss
from training.learn.state import State, scores_of
from training.models.model import make
from training.pipeline import candidates
from training.pipeline.positions import before
from training.record import registry

Floats = npt.NDArray[np.floating]
NEAR_ONE = 1e-7
"""The log loss takes a served probability of 0 or 1 as so far from it."""

log = process.logger("warm_start")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates the lineage's first base on an interval that it has not learned. Returns the report."""
    declaration, delta_log = load(args.source).declaration, Log(args.log)
    record = candidates.read(delta_log, args.lineage)
    if args.begin < record["end_ms"]:
        raise ValueError(
            f"--begin is {args.begin}, allowed is {record['end_ms']} or later: the lineage has learned until then"
        )
    report = record.get("evaluation", {})
    if (report.get("begin_ms"), report.get("end_ms"), report.get("seed")) == (args.begin, args.end, args.seed):
        log.info("%s was evaluated on the same interval before: there is nothing to do", args.lineage)
    else:
        table = Archive(args.archive, declaration).read(EXAMPLES, record["begin_ms"], args.end)
        unlearned = from_table(table.filter(pa.array(~before(table, record["positions"]["offsets"]))), declaration)
        judged = np.flatnonzero(unlearned.event_ms >= args.begin)
        log.info("%d examples that it has not learned, %d of them judged", unlearned.size, len(judged))
        state = _restored(delta_log.manifest(args.lineage, "base", 0), declaration, args)
        logits = scores_while_learning(state, unlearned, judged)
        report = {"begin_ms": args.begin, "end_ms": args.end, "seed": args.seed}
        report |= compare(unlearned.take(judged), logits, declaration, args.seed)
        candidates.write(delta_log, args.lineage, {**record, "evaluation": report})
    if args.mlflow != "none":
        client = registry.client_of(args.mlflow)
        run = registry.run_of(client, args.source, args.lineage)
        figures = {f"eval_{side}_{name}": report[side][name] for side in ("candidate", "served")
                   for name in ("auc", "loss", "calibration")}  # fmt: skip
        figures |= {f"eval_{name}": report[name] for name in ("difference", "low", "high", "examples")}
        for task in declaration.values:
            figures |= {f"eval_{task}_{name}": figure for name, figure in report["tasks"][task].items()}
        figures = {name: figure for name, figure in figures.items() if figure is not None}
        registry.describe(client, run, {"eval_begin_ms": args.begin, "eval_end_ms": args.end}, {}, figures)
        tags = {"data_sha256": record["data_sha256"], "from": record["from"], **figures}
        base = delta_log.manifest(args.lineage, "base", delta_log.seqs(args.lineage, "base")[0])
        report["version"] = registry.register(client, args.source, run, base, registry.CANDIDATE, tags)
    return {"lineage": args.lineage, **report}


def _restored(base: Manifest, declaration: Declaration, args: argparse.Namespace) -> State:
    state = State(Learner(make(base.model, declaration), Settings(args.batch, args.seed)), args.source)
    state.restore(Log(args.log), base.lineage, base.seq)
    return state


def scores_while_learning(state: State, examples: Batch, judged: npt.NDArray[np.intp]) -> Floats:
    """Returns the logits float32[len(judged), tasks] that a served model gives while it learns all examples.

    Each judged example is scored when the state has learned what was known at its `ts_ms`, but for the batch in which
    that time falls. Examples are learned in the order of their `event_ms`.
    """
    logits = np.zeros((len(judged), len(state.declaration.tasks)), np.float32)
    shown = np.argsort(examples.ts_ms[judged], kind="stable")
    shown_ms, known = examples.ts_ms[judged[shown]], np.argsort(examples.event_ms, kind="stable")
    scored, step = 0, state.learner.settings.batch
    for at in range(0, len(known), step):
        part = examples.take(known[at : at + step])
        until_ms = int(part.event_ms[-1])
        end = int(np.searchsorted(shown_ms, until_ms, "right"))
        places, scored = shown[scored:end], end
        if len(places):
            logits[places] = scores_of(state.learner, examples.take(judged[places]))
        state.learn(part)
        state.learned_until_ms = max(state.learned_until_ms, until_ms)
        state.expire()
        state.expiry.end()
    return logits


def compare(batch: Batch, logits: Floats, declaration: Declaration, seed: int = 0) -> dict[str, Any]:
    """The report on a candidate, from its logits, float[n, tasks], of the same examples.

    `tasks` has the AUC of each task; of a value task the concordance, `mean`, and calibration and loss of both sides.
    `examples` counts the examples of the judged task that were scored when they were shown.
    """
    judged = declaration.tasks.index(declaration.judged)
    rows = _scored(batch, judged)
    labels, weights = batch.labels[rows, judged], _weights(batch, rows, judged)
    candidate, served = _probability(logits[rows, judged]), batch.scores[rows, judged].astype(np.float64)
    if len(rows):
        difference = compared(labels, candidate, served, batch.user_id[rows], seed, weights)._asdict()
    else:
        difference = dict.fromkeys(("difference", "low", "high"), float("nan"))
    clipped = np.clip(served, NEAR_ONE, 1 - NEAR_ONE)
    report = {
        "task": declaration.judged,
        "examples": len(rows),
        "unscored": int((batch.weights[:, judged] > 0).sum()) - len(rows),
        "candidate": _figures(labels, candidate, logits[rows, judged], weights),
        "served": _figures(labels, served, np.log(clipped / (1 - clipped)), weights),
        **{name: difference[name] for name in ("difference", "low", "high")},
        "tasks": {},
    }
    for place, task in enumerate(declaration.tasks):
        of = _of_value if task in declaration.values else _of_action
        report["tasks"][task] = of(batch, logits, place)
    return {name: _without_nan(figure) for name, figure in report.items()}


def _of_action(batch: Batch, logits: Floats, task: int) -> dict[str, float]:
    """The positives of a task, and the AUC of both sides."""
    rows = _scored(batch, task)
    label, weight = batch.labels[rows, task], _weights(batch, rows, task)
    sides = {"candidate": logits[rows, task], "served": batch.scores[rows, task]}
    return {"positives": int(label.sum()), **{side: auc(label, scores, weight) for side, scores in sides.items()}}


def _of_value(batch: Batch, logits: Floats, task: int) -> dict[str, float]:
    """The positives of a value task, the mean value, and of both sides concordance, calibration and loss."""
    rows = _scored(batch, task)
    label, weight = batch.labels[rows, task], _weights(batch, rows, task)
    report: dict[str, float] = {"positives": int(label.sum())}
    for side, scores in (("candidate", _probability(logits[rows, task])), ("served", batch.scores[rows, task])):
        figures = value.figures(label, batch.values[rows, task], scores, weight)
        report |= {"mean": figures["mean"], side: figures["concordance"]}
        report |= {f"{side}_{name}": figures[name] for name in ("calibration", "loss")}
    return report


def _scored(batch: Batch, task: int) -> npt.NDArray[np.intp]:
    """The rows of the examples that are about the task and were scored when they were shown."""
    return np.flatnonzero((batch.weights[:, task] > 0) & np.isfinite(batch.scores[:, task]))


def _weights(batch: Batch, rows: npt.NDArray[np.intp], task: int) -> Floats:
    return np.where(batch.labels[rows, task] > 0, 1.0, 1 / batch.pi[rows])


def _probability(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _figures(labels: Floats, scores: Floats, logits: Floats, weights: Floats) -> dict[str, float]:
    """AUC, log loss, and the mean score over the rate."""
    positives = float((weights * labels).sum())
    return {
        "auc": auc(labels, scores, weights),
        "loss": logloss(logits, labels, weights),
        "calibration": float((weights * scores).sum()) / positives if positives else float("nan"),
    }


def _without_nan(figure: Any) -> Any:
    """The figure with None for each NaN in it: JSON has no NaN."""
    if isinstance(figure, dict):
        return {name: _without_nan(inner) for name, inner in figure.items()}
    return None if isinstance(figure, float) and np.isnan(figure) else figure
