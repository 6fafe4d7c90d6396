"""Chooses the samples that a warm start learns from, and the interval after them to evaluate it on.

    python -m training.pipeline.selection --samples DIR --archive DIR [--days 3] [--day 2022-05-07] [--judge-end T]

Without an interval it takes the newest sample. If nothing is archived after that sample yet, it takes the samples
before, and evaluates on the newest sample's own interval. Exit code 3: there is nothing to evaluate on yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common import process
from common.errors import Refused
from common.interval import Interval, milliseconds
from streaming.archive.archive import Archive
from training.pipeline.sampling import samples

log = process.logger("choice")
LEAST_SHARE = 0.2
"""The interval to evaluate on is at least this share of the sample's length, so that the figures mean something."""


class NothingToJudge(Refused):
    """There is a sample, but no interval after it to evaluate on."""


def choose(
    existing: list[dict[str, Any]], until_ms: int, interval: Interval | None, days: int, judge_end_ms: int | None
) -> tuple[list[dict[str, Any]], Interval]:
    """The samples to learn from, oldest first, and the interval to evaluate on.

    `existing`: all samples, in order. `until_ms`: the archive is complete until then. Raises ValueError if there is no
    such sample, and NothingToJudge if there is no interval after it.
    """
    full = [s for s in existing if s["rows"]]
    wanted = [s for s in full if interval is None or interval == _interval(s)]
    if not wanted:
        names = ", ".join(dict.fromkeys(str(_interval(s)) for s in full)) or "none"
        wrong = "there is no sample" if interval is None else f"interval is {interval}, which has no sample"
        raise ValueError(f"{wrong}; samples that are not empty: {names} (sample_examples makes them)")
    newest = _interval(wanted[-1])
    end_ms = min(judge_end_ms or newest.after().end_ms, (until_ms + 1) // 1000 * 1000)
    if judge_end_ms is not None and end_ms < judge_end_ms:
        raise ValueError(f"judge_end is {judge_end_ms}, the archive is complete until {until_ms} only")
    if end_ms - newest.end_ms >= LEAST_SHARE * (newest.end_ms - newest.begin_ms) or judge_end_ms is not None:
        return _last(wanted[-1], full, days), Interval(newest.end_ms, end_ms)
    before = [s for s in full if s["end_ms"] <= newest.begin_ms]
    if interval is not None or not before:
        raise NothingToJudge(f"nothing to judge {newest} on: the archive is complete until {until_ms}, no day after it")
    return _last(before[-1], full, days), newest


def _last(newest: dict[str, Any], full: list[dict[str, Any]], days: int) -> list[dict[str, Any]]:
    """`newest` and up to days - 1 samples before it, sampled in the same way and without overlap."""
    chosen = [newest]
    for s in reversed(full):
        if len(chosen) < days and s["sampling"] == newest["sampling"] and s["end_ms"] <= chosen[-1]["begin_ms"]:
            chosen.append(s)
    return chosen[::-1]


def _interval(sample: dict[str, Any]) -> Interval:
    return Interval(sample["begin_ms"], sample["end_ms"])


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments(
        "training.pipeline.selection", "Choose the samples a warm start learns from and the interval to evaluate it on."
    )
    parser.add_argument(
        "--samples", required=True, type=Path, metavar="DIR", help="what training.pipeline.sampling wrote"
    )
    parser.shared("archive")
    parser.add_argument("--days", type=process.at_least(1), default=1, metavar="N",
                        help="learn from so many samples: the newest, and those before it (default: 1)")  # fmt: skip
    parser.add_argument("--day", default="", help="the newest sample's day (default: the newest there is)")
    parser.shared("begin", "end", required=False, default="", help="or its begin and end")
    parser.add_argument("--judge-end", metavar="T", help="evaluate until then (default: as long as the newest sample)")
    args = parser.parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    interval = Interval.of(args.day, args.begin, args.end) if args.day or args.begin or args.end else None
    judge_end_ms = milliseconds("judge_end", args.judge_end) if args.judge_end else None
    until_ms = Archive(args.archive).until_ms("examples")
    chosen, judge = choose(samples(args.samples), until_ms, interval, args.days, judge_end_ms)
    for s in chosen:
        log.info("learn from %s (%s): %d examples", _interval(s), s["sampling"], s["rows"])
    log.info("judge on %s", judge)
    train = {"examples": [s["file"] for s in chosen], "begin": chosen[0]["begin_ms"], "end": chosen[-1]["end_ms"]}
    print(json.dumps({"train": train, "judge": {"begin": judge.begin_ms, "end": judge.end_ms}}))


if __name__ == "__main__":
    sys.exit(main())
