"""The contracts of a day: a good one passes and becomes the reference, a poisoned one is refused in words."""

from __future__ import annotations

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import unescape
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from common.interval import Interval
from streaming.archive.archive import Archive
from tests.support import archived
from training.pipeline import expectations as contracts
from training.pipeline import validation
from training.pipeline.expectations import Tolerance

FIRST = Interval(archived.BEGIN_MS, archived.BEGIN_MS + 3 * archived.MINUTE_MS)
SECOND = FIRST.after()


def put(table: pa.Table, column: str, rows: list[int], value: object) -> pa.Table:
    """The table with `value` at `rows` of a column."""
    at = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    for row in rows:
        values[row] = value
    return table.set_column(at, column, pa.array(values, table.schema.field(at).type))


def inside(table: pa.Table, column: str, interval: Interval) -> list[int]:
    """Rows of the interval."""
    times = table[column]
    within = pc.and_(pc.greater_equal(times, interval.begin_ms), pc.less(times, interval.end_ms))
    return np.flatnonzero(within.combine_chunks().to_numpy(zero_copy_only=False)).tolist()


def poison(day: dict[str, pa.Table]) -> dict[str, pa.Table]:
    shown, learned = day["impressions"], day["examples"]
    rows = inside(shown, "ts_ms", FIRST)
    shown = put(shown, "user_id", rows[:3], None)
    shown = put(shown, "impression_id", rows[10:60], "twice")
    shown = put(shown, "score_watch", rows[5:6], 1.5)
    shown = put(shown, "feature_clip", rows[7:9], -(2**63))
    rows = inside(learned, "event_ms", FIRST)
    learned = put(learned, "kind", rows[:2], "neutral")
    learned = put(learned, "ts_ms", rows[4:5], FIRST.end_ms + 60_000)
    learned = put(learned, "pi", rows[6:7], 0.0)
    learned = put(learned, "feature_age", rows, 7.5)
    ids = learned["impression_id"].to_pylist()
    kinds = learned["kind"].to_pylist()
    negative = [r for r in rows if kinds[r] == "negative"]
    learned = put(learned, "impression_id", negative[1:2], ids[negative[0]])
    return {**day, "impressions": shown, "examples": learned}


def shift(day: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Most positives of the second interval are gone."""
    table = day["examples"]
    late = pc.greater_equal(table["event_ms"], SECOND.begin_ms)
    rare = np.arange(table.num_rows) % 4 > 0
    lost = pc.and_(pc.and_(late, pc.equal(table["kind"], "positive")), pa.array(rare))
    return {**day, "examples": table.filter(pc.invert(lost))}


def judge(archive, interval, folder):
    return validation.validate(Archive(archive), archived.declared(), interval, folder / "samples", folder / "docs")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "docs").mkdir()
    return tmp_path


def test_a_good_day_passes_and_the_next_is_judged_against_it(folder, caplog):
    archive = archived.archive(folder / "archive", 6, shift)
    first = judge(archive, FIRST, folder)
    assert first.findings == []
    assert first.expectations > 30
    page = first.docs.read_text()
    assert first.docs == folder / "docs" / FIRST.name / "index.html"
    linked = dict(re.findall(r'<li><a href="([^"]+)">(\w+)</a><br>kept</li>', page))
    assert sorted(linked.values()) == ["examples", "impressions"]
    assert all((first.docs.parent / unquote(link)).is_file() for link in linked)
    statistics = json.loads((folder / "samples" / FIRST.name / "validated.json").read_text())
    assert 0.2 < statistics["rate_watch"][0] < 0.8
    with caplog.at_level(logging.INFO, "validation"):
        second = judge(archive, SECOND, folder)
    assert f"rates are judged against {FIRST.name}" in caplog.text
    low, high = Tolerance().of_rate(statistics["rate_watch"][0], 1)
    (watched,) = [f for f in second.findings if "rate_watch" in f]
    assert watched.startswith("examples: expect_column_mean_to_be_between of rate_watch: seen is 0.")
    assert "; allowed is at least 0." in watched
    assert not (folder / "samples" / SECOND.name / "validated.json").exists()
    assert low < high


def test_a_mean_may_move_by_what_its_values_vary_or_by_a_tenth():
    low, high = Tolerance().of_mean(0.862, 0.026, 20_000)  # ages: the same videos a day later are no other day
    assert low < 0.862 - 0.032 and 0.862 + 0.032 < high < 1.0
    assert Tolerance().of_mean(0.0, 1.0, 10_000) == pytest.approx((-1.04, 1.04))
    assert Tolerance().of_mean(5.0, 0.0, 100) == pytest.approx((4.9, 5.1))


def test_a_poisoned_day_is_refused_and_each_finding_says_what_was_seen_and_what_is_allowed(folder):
    archive = archived.archive(folder / "archive", 3, poison)
    good = archived.archive(folder / "good", 3)
    earlier = Interval(FIRST.begin_ms - 60_000, FIRST.begin_ms)
    day = contracts.examples(Archive(good).read("examples", FIRST.begin_ms, FIRST.end_ms), archived.declared(), FIRST)
    reference = folder / "samples" / earlier.name
    reference.mkdir(parents=True)
    (reference / "validated.json").write_text(json.dumps(contracts.statistics(day)))

    verdict = judge(archive, FIRST, folder)

    page = unescape(verdict.docs.read_text())
    assert all(finding.partition(": ")[2] in page for finding in verdict.findings)
    assert not (folder / "samples" / FIRST.name).exists()
    seen = dict(f.split(": seen ", 1) for f in verdict.findings)
    n = Archive(archive).read("impressions", FIRST.begin_ms, FIRST.end_ms).num_rows
    m = Archive(archive).read("examples", FIRST.begin_ms, FIRST.end_ms).num_rows
    ids = "-9223372036854775808, -9223372036854775807"
    expected = {
        "impressions: expect_column_values_to_not_be_null of user_id": f"are 3 of {n} values",
        "impressions: expect_column_values_to_be_unique of impression_id": f"are 50 of {n} values that are not allowed "
        "(twice); allowed is each value once for at least 99.0% of them",
        "impressions: expect_column_values_to_be_between of score_watch": f"are 1 of {n} values that are not allowed "
        "(1.5); allowed is at least 0 and at most 1",
        "impressions: expect_column_values_to_not_be_in_set of feature_clip": f"are 2 of {n} values that are not "
        f"allowed (-9223372036854775808); allowed is none of {ids}",
        "examples: expect_column_values_to_be_in_set of kind": f"are 2 of {m} values that are not allowed "
        "(neutral); allowed are negative, positive",
        "examples: expect_column_values_to_be_between of pi": f"are 1 of {m} values that are not allowed (0.0); "
        "allowed is more than 0 and at most 1",
        "examples: expect_column_values_to_be_unique of pair": f"are 2 of {m} values that are not allowed",
        "examples: expect_column_values_to_be_between of waited_ms": f"are 1 of {m} values that are not allowed (-",
        "examples: expect_column_mean_to_be_between of feature_age": "is 7.5; allowed is at least ",
    }
    for expectation, text in expected.items():
        assert seen.pop(expectation).startswith(text)
    assert seen == {}


def test_a_task_that_no_example_is_about_is_no_evidence(folder):
    def silent(day):
        table = day["examples"]
        watched = [i for i, weight in enumerate(table["weight_watch"].to_pylist()) if weight == 0]
        return day | {"examples": table.take(pa.array(watched))}

    assert judge(archived.archive(folder / "archive", 3, silent), FIRST, folder).findings == []
    statistics = json.loads((folder / "samples" / FIRST.name / validation.REFERENCE).read_text())
    assert "rate_watch" not in statistics and len(statistics) > 1


def test_a_column_without_a_value_is_named():
    config = {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "feature_age", "min_value": 1.0}}
    result = {"expectation_config": config, "result": {"observed_value": None}}
    text = "expect_column_mean_to_be_between of feature_age: there is no value to judge; allowed is at least 1"
    assert validation.finding(result) == text


def test_an_empty_interval_is_nothing_against_anybody(folder):
    def without(day):
        rows = {t: inside(day[t], "event_ms" if t == "examples" else "ts_ms", SECOND) for t in day}
        return {t: table.filter(pa.array(~np.isin(np.arange(table.num_rows), rows[t]))) for t, table in day.items()}

    verdict = judge(archived.archive(folder / "archive", 6, without), SECOND, folder)
    assert verdict == validation.Verdict([], 0, None)


def test_features_that_are_not_the_stores_are_named(folder):
    source = archived.simulator()
    shown = archived.exposures(source, FIRST.begin_ms, FIRST.end_ms)
    logged = archived.tables(source, shown)["impressions"]
    same = {"clip": 0.98, "age": 1.0}
    verdict = validation.check([contracts.features(logged, same, source.declaration)], folder / "docs" / "day")
    (finding,) = verdict.findings
    assert finding.startswith("features: expect_column_mean_to_be_between of same_clip: seen is 0.98")
    assert finding.endswith("allowed is at least 0.999 and at most 1")


@dataclass(frozen=True)
class Info:
    rows: int


@dataclass(frozen=True)
class Written:
    """What a contract reads of a manifest."""

    seq: int
    learned_until_ms: int
    bytes: int = 1000
    tables: dict[str, Info] = None

    def __post_init__(self):
        object.__setattr__(self, "tables", {"clip": Info(5), "viewer": Info(7)})


def test_deltas_have_no_gap_and_time_moves_on(folder):
    good = [Written(seq, 1000 * seq) for seq in range(4, 9)]
    assert validation.check([contracts.deltas(good)], folder / "docs" / "good").findings == []
    bad = [*good[:2], replace(good[2], learned_until_ms=1), *good[4:]]
    findings = validation.check([contracts.deltas(bad)], folder / "docs" / "bad").findings
    assert [f.split(": seen")[0] for f in findings] == [
        "deltas: expect_column_values_to_be_between of moved_ms",
        "deltas: expect_column_values_to_be_in_set of step",
    ]
    assert findings[1].endswith("(2); allowed are 1")


def test_pages_that_are_put_in_place_at_once_are_one_writers(tmp_path):
    def pages(writer: int) -> None:
        for turn in range(20):
            with validation.in_place_of(tmp_path / "day") as aside:
                for name in range(5):
                    (aside / str(name)).write_text(f"{writer} {turn}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(pages, range(4)))
    assert len({p.read_text() for p in (tmp_path / "day").iterdir()}) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "day"]
