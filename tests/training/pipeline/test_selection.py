"""The choice of samples that a warm start learns from, and of the interval to judge it on."""

from __future__ import annotations

import pytest

from common.interval import Interval
from training.pipeline.selection import NothingToJudge, choose

HOUR = 3_600_000


def sampled(hour: int, hours: int = 1, rows: int = 9, sampling: str = "pilot-0.5-0.05") -> dict:
    begin, end = hour * HOUR, (hour + hours) * HOUR
    return {"begin_ms": begin, "end_ms": end, "rows": rows, "sampling": sampling, "file": f"{hour}"}


def hours(begin: int, end: float) -> Interval:
    return Interval(begin * HOUR, round(end * HOUR))


DAYS = [sampled(0), sampled(1), sampled(2, sampling="uniform-0.5"), sampled(3), sampled(4, rows=0)]


@pytest.mark.parametrize(
    ("until", "interval", "days", "judge_end", "learned", "judged"),
    [
        # The newest sample that is not empty, and as long again after it, cut at what is archived.
        (9.0, None, 1, None, ["3"], hours(4, 5)),
        (4.5, None, 1, None, ["3"], hours(4, 4.5)),
        # Nothing after it yet: it is the day that judges what was sampled before.
        (4.1, None, 1, None, ["2"], hours(3, 4)),
        # Several days: those that were sampled alike.
        (9.0, None, 2, None, ["1", "3"], hours(4, 5)),
        (9.0, None, 9, None, ["0", "1", "3"], hours(4, 5)),
        # What a person asked for.
        (9.0, hours(0, 1), 1, None, ["0"], hours(1, 2)),
        (9.0, hours(1, 2), 1, 8 * HOUR, ["1"], hours(2, 8)),
    ],
)
def test_the_choice(until, interval, days, judge_end, learned, judged):
    chosen, judge = choose(DAYS, round(until * HOUR), interval, days, judge_end)
    assert [s["file"] for s in chosen] == learned
    assert judge == judged


def test_samples_that_overlap_are_not_learned_twice():
    overlapping = [sampled(0, 2), sampled(1), sampled(2)]
    assert [s["file"] for s in choose(overlapping, 9 * HOUR, None, 3, None)[0]] == ["1", "2"]


@pytest.mark.parametrize(
    ("samples", "interval", "judge_end", "error", "text"),
    [
        ([], None, None, ValueError, "there is no sample; samples that are not empty: none"),
        (
            DAYS,
            hours(7, 8),
            None,
            ValueError,
            r"which has no sample; .*\[1970-01-01T00:00:00, 1970-01-01T01:00:00\)",
        ),
        (DAYS, hours(3, 4), 7 * HOUR, ValueError, "judge_end is .* complete until"),
        (DAYS[:1], None, None, NothingToJudge, "no day after it"),
        (DAYS, hours(3, 4), None, NothingToJudge, "nothing to judge .* on"),
    ],
)
def test_what_cannot_be_chosen_says_why(samples, interval, judge_end, error, text):
    until = 1 if samples == DAYS[:1] else 4
    with pytest.raises(error, match=text):
        choose(samples, until * HOUR, interval, 1, judge_end)
