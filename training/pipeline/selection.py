"""Which samples a warm start learns from, and the interval after them that judges it.

    python -m training.pipeline.selection --samples DIR --archive DIR [--days 3] [--day 2022-05-07] [--judge-end T]

Without an interval the newest sample is meant. If nothing is archived after it yet, the newest sample's own interval is
the day that judges, and what was sampled before it is learned from. Exit 3: there is nothing to judge on yet.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from common.interval import Interval, milliseconds
from streaming.archive.archive import Archive
from training.pipeline.sampling import samples

log = logging.getLogger("choice")
LEAST_SHARE = 0.2
"""Of the interval's length that must follow it, so that the figures mean something."""


class NothingToJudge(RuntimeError):
    """There is a sample, but no day after it; says what is there."""


def choose(
    known: list[dict[str, Any]], until_ms: int, interval: Interval | None, days: int, judge_end_ms: int | None
) -> tuple[list[dict[str, Any]], Interval]:
    """The samples to learn from, oldest first, and the interval to judge on.

    `known`: samples in order; `until_ms`: the archive is complete up to it. Raises ValueError without such a sample,
    NothingToJudge without a day after it.
    """
    full = [s for s in known if s["rows"]]
    wanted = [
        s for s in full if interval is None or (s["begin_ms"], s["end_ms"]) == (interval.begin_ms, interval.end_ms)
    ]
    if not wanted:
        there = ", ".join(dict.fromkeys(str(_of(s)) for s in full)) or "none"
        which = "there is no sample" if interval is None else f"interval is {interval}, which has no sample"
        raise ValueError(f"{which}; samples that are not empty: {there} (sample_examples makes them)")
    newest = _of(wanted[-1])
    after = newest.after()
    end_ms = min(judge_end_ms or after.end_ms, (until_ms + 1) // 1000 * 1000)
    if judge_end_ms is not None and end_ms < judge_end_ms:
        raise ValueError(f"judge_end is {judge_end_ms}, the archive is complete until {until_ms} only")
    if end_ms - newest.end_ms >= LEAST_SHARE * (newest.end_ms - newest.begin_ms) or judge_end_ms is not None:
        return _last(wanted[-1], full, days), Interval(newest.end_ms, end_ms)
    before = [s for s in full if s["end_ms"] <= newest.begin_ms]
    if interval is not None or not before:
        raise NothingToJudge(f"nothing to judge {newest} on: the archive is complete until {until_ms}, no day after it")
    return _last(before[-1], full, days), newest


def _last(newest: dict[str, Any], full: list[dict[str, Any]], days: int) -> list[dict[str, Any]]:
    """`newest` and the days - 1 before it, sampled alike and without overlap."""
    chosen = [newest]
    for s in reversed(full):
        if len(chosen) < days and s["sampling"] == newest["sampling"] and s["end_ms"] <= chosen[-1]["begin_ms"]:
            chosen.append(s)
    return chosen[::-1]


def _of(sample: dict[str, Any]) -> Interval:
    return Interval(sample["begin_ms"], sample["end_ms"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "training.pipeline.selection",
        description="Choose the samples a warm start learns from and the day that judges it.",
    )
    parser.add_argument(
        "--samples", required=True, type=Path, metavar="DIR", help="what training.pipeline.sampling wrote"
    )
    parser.add_argument(
        "--archive", required=True, type=Path, metavar="DIR", help="what streaming.archive.archiver wrote"
    )
    parser.add_argument("--days", type=int, default=1, help="so many samples: the newest, and those before it")
    parser.add_argument("--day", default="", help="the newest sample's day (default: the newest there is)")
    parser.add_argument("--begin", default="", metavar="T", help="or its begin and end")
    parser.add_argument("--end", default="", metavar="T")
    parser.add_argument("--judge-end", metavar="T", help="judge on what follows up to here (default: as long again)")
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    try:
        interval = Interval.of(args.day, args.begin, args.end) if args.day or args.begin or args.end else None
        judge_end_ms = milliseconds("judge_end", args.judge_end) if args.judge_end else None
        until_ms = Archive(args.archive).until_ms("examples")
        chosen, judge = choose(samples(args.samples), until_ms, interval, args.days, judge_end_ms)
    except ValueError as e:
        log.error("%s", e)
        return 2
    except NothingToJudge as e:
        log.error("%s", e)
        return 3
    for s in chosen:
        log.info("learn from %s (%s): %d examples", _of(s), s["sampling"], s["rows"])
    log.info("judge on %s", judge)
    train = {"examples": [s["file"] for s in chosen], "begin": chosen[0]["begin_ms"], "end": chosen[-1]["end_ms"]}
    print(json.dumps({"train": train, "judge": {"begin": judge.begin_ms, "end": judge.end_ms}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
