"""Intervals of event time: from what a person gives, to a name and back."""

from __future__ import annotations

import pytest

from common.interval import Interval, milliseconds

DAY = 24 * 3600 * 1000
MAY_7 = 1651881600000


def test_a_day_or_begin_and_end():
    assert Interval.of(day="2022-05-07") == Interval(MAY_7, MAY_7 + DAY)
    six = Interval.of(begin="2022-05-07T06:00", end="2022-05-07T14:00:00+02:00")
    assert six == Interval(MAY_7 + DAY // 4, MAY_7 + DAY // 2)
    assert milliseconds("begin", str(MAY_7)) == MAY_7


def test_its_name_says_all_of_it():
    interval = Interval(MAY_7, MAY_7 + 90_000)
    assert interval.name == "2022-05-07T000000_2022-05-07T000130"
    assert Interval.named(interval.name) == interval
    assert interval.after() == Interval(MAY_7 + 90_000, MAY_7 + 180_000)
    assert str(interval) == "[2022-05-07T00:00:00, 2022-05-07T00:01:30)"


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (MAY_7, MAY_7 + 2 * DAY + 5, Interval(MAY_7, MAY_7 + DAY)),  # the last whole day with a whole day after it
        (MAY_7 - 9, MAY_7 + 3 * DAY, Interval(MAY_7 + DAY, MAY_7 + 2 * DAY)),
        (MAY_7 + 500, MAY_7 + 30_500, Interval(MAY_7, MAY_7 + 20_000)),  # no whole day: two thirds
        (MAY_7, MAY_7 + 1, Interval(MAY_7, MAY_7 + 1000)),
    ],
)
def test_what_is_taken_when_nobody_said(begin, end, expected):
    assert Interval.within(begin, end) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"day": "soon"}, "day is 'soon'; allowed is a date or time"),
        ({"begin": "2022-05-07"}, "allowed is a day, or both begin and end"),
        ({"day": "2022-05-07", "begin": "2022-05-07", "end": "2022-05-08"}, "allowed is a day, or both"),
        ({"begin": "2022-05-08", "end": "2022-05-07"}, "allowed is begin < end"),
        ({"begin": "2022-05-07T00:00:00.5", "end": "2022-05-08"}, "allowed are whole seconds"),
    ],
)
def test_a_wrong_interval_is_named(given, said):
    with pytest.raises(ValueError, match=said):
        Interval.of(**given)
