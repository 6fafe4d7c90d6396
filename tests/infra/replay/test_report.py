"""The report's figures against small logs whose answers are known by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_log.manifest import Manifest, ModelInfo, TableInfo
from infra.replay import tasks
from infra.replay.pictures import auc_picture, freshness_picture
from infra.replay.report import (
    HOUR_MS,
    Pairs,
    Sent,
    build,
    compared,
    freshness,
    markdown,
    over_time,
    weighted_percentiles,
)
from streaming.declaration import Declaration, Feature

DECLARATION = Declaration("small", (Feature("viewer", "id"),), ("click", "like"), "click", window_ms=1000)
FORGOTTEN = {
    "impressions": 9,
    "base": 0.75,
    "served": 0.749,
    "forgotten": 0.001,
    "low": 0,
    "high": 0.002,
    "limit": 0.002,
}
ABOUT = {
    "source": "small", "seed": 1, "commit": "none", "sync_every_s": 1.0, "wall_s": 2.0, "setup_s": 1.0,
    "event_s_per_sync": 120.0, "frozen_age_days": 7.0, "forgetting": FORGOTTEN,
}  # fmt: skip
T = 10_000


def manifest(seq: int, count: int, total: int) -> Manifest:
    return Manifest(
        kind="delta" if seq else "base", lineage="000001-00000000", seq=seq, previous="", created_ms=0, source="small",
        declaration="", model=ModelInfo("deepfm", {}), positions={}, learned={"count": count, "sum": str(total)},
        learned_until_ms=0, written_ms={}, tick=1, tick_times={}, dense_seq=0, digest={},
        tables={"viewer": TableInfo(dim=17, slots=17, rows=3, removed=0, total=3)},
        metrics={}, files={"rows-0.arrow": {"bytes": 100}}, folder=Path(), sha256="",
    )  # fmt: skip


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    # a: clicked in the last millisecond of its window; b: clicked one too late; c: nothing; d: liked, prediction failed
    columns = {
        "impression_id": ["a", "b", "c", "d"],
        "user_id": [1, 1, 2, 3],
        "item_id": [7, 8, 8, 9],
        "ts_ms": [T, T, T + 3000, T + 3001],
        "wall_ms": [1, 2, 3, 4],
        "predict_ms": [2.0, 4.0, 6.0, None],
        "ok": [True, True, True, False],
        "outcome_click": pa.array([T + 1000, T + 1001, None, None], pa.int64()),
        "outcome_like": pa.array([None, None, None, T + 3001], pa.int64()),
        "served_click": [0.9, 0.1, 0.2, None],
        "served_like": [0.1, 0.1, 0.1, None],
        "frozen_click": [0.5, 0.5, 0.5, None],
        "frozen_like": [0.5, 0.5, 0.5, None],
    }
    pq.write_table(pa.table(columns).slice(0, 2), tmp_path / "impressions-0.parquet")
    pq.write_table(pa.table(columns).slice(2), tmp_path / "impressions-1.parquet")
    return Sent.read(tmp_path, DECLARATION)


def test_a_send_log_in_parts_is_read_whole(sent: Sent, tmp_path: Path) -> None:
    assert sent.impression_id == ["a", "b", "c", "d"]
    assert sent.outcome_ms.tolist() == [[T + 1000, -1], [T + 1001, -1], [-1, -1], [-1, T + 3001]]
    with pytest.raises(FileNotFoundError, match="sent nothing"):
        Sent.read(tmp_path / "nowhere", DECLARATION)


def test_every_pair_ends_in_exactly_one_state(sent: Sent) -> None:
    every = Pairs.of(sent, DECLARATION, pi=1.0, salt="s")
    assert every.positive.tolist() == [[True, False], [False, False], [False, False], [False, True]]
    assert every.late.tolist() == [[False, False], [True, False], [False, False], [False, False]]
    for pi in (1.0, 0.5, 1e-9):
        pairs = Pairs.of(sent, DECLARATION, pi=pi, salt="s")
        assert ((pairs.positive + 0 + pairs.negative + pairs.sampled_out) == 1).all()
        # one draw an impression, whatever its labels
        assert (pairs.sampled_out.any(axis=1) & pairs.negative.any(axis=1)).sum() == 0
    assert pairs.negative.sum() == 0


def test_lost_and_double_are_counted_apart(sent: Sent) -> None:
    pairs = Pairs.of(sent, DECLARATION, pi=1.0, salt="s")
    count, total = pairs.learned(sent)
    assert count == 8
    base = manifest(0, 40, 2**64 - 5)
    newest = manifest(1, 40 + count, (total + 2**64 - 5) % 2**64)
    confirmed = [
        {
            "written_ms": {"positive": {"500": 2}, "negative": {}},
            "confirmed_ms": 1500,
            "digests_equal": True,
            "rows": 3,
            "bytes": 100,
        }
    ]
    found = pairs.keys(sent)
    more = {"refused": {"actions.late": 1, "impressions.dead": 2}, "items": np.array([7])}
    whole = build(sent, pairs, DECLARATION, found, 5, base, newest, confirmed, ABOUT, **more)
    assert whole["pairs"] == {
        "offered": 8, "learned_pos": 2, "learned_neg": 6, "sampled_out": 0, "late": 1, "lost": 0, "double": 0,
    }  # fmt: skip
    assert whole["learned_equal"] and whole["failed_predictions"] == 1 and whole["events"] == 7
    found[("a", 0, 1)] += 1  # joined twice, learned once
    del found[("c", 0, 0)]  # never joined
    broken = build(sent, pairs, DECLARATION, found, 5, base, newest, confirmed, ABOUT, **more)
    assert (broken["pairs"]["lost"], broken["pairs"]["double"]) == (1, 1)
    forgotten = manifest(1, 40 + count - 1, total)  # joined, never learned
    unlearned = build(sent, pairs, DECLARATION, pairs.keys(sent), 5, base, forgotten, confirmed, ABOUT, **more)
    assert unlearned["pairs"]["lost"] == 1 and not unlearned["learned_equal"]
    assert "forgotten (95 % by user; limit 0.002) | 0.0010 (0.0000 to 0.0020)" in markdown(unlearned)
    assert "lost" in markdown(unlearned) and "as dead letters | 1, 2 |" in markdown(unlearned)


def test_a_value_task_is_reported_by_its_expected_value() -> None:
    """`like` has a value here: 3 of the one impression of three that was liked. Both models expect 1 of each."""
    declared = replace(DECLARATION, values=("like",), rank={"click": 1, "like": 0.5})
    half, labels = np.full((3, 2), 0.5), np.array([[1, 0], [0, 0], [0, 1]])
    values, served = np.array([[1, 1], [1, 1], [1, 3.0]]), np.array([[0.9, 0.5], [0.1, 0.2], [0.2, 0.5]])
    click, like = tasks.figures(declared, labels, values, served, half)
    assert click == {"task": "click", "impressions": 3, "positives": 1, "served": 1.0, "frozen": 0.5}
    assert (like["mean"], like["served"], like["frozen"]) == (1.0, 0.75, 0.5)
    assert (like["calibration_frozen"], like["calibration_served"]) == (1.0, 0.75)
    assert like["loss_frozen"] == pytest.approx((3 + 3) * np.log(2) / 3, abs=1e-4)
    assert "| like | 1.0000 | 0.7500, 1.0000 |" in "\n".join(tasks.table([click, like]))
    assert tasks.rank_aucs(declared, served, half, labels[:, 0])["served"] == 1.0
    assert tasks.rank_aucs(DECLARATION, served, half, labels[:, 0]) == {}


def test_the_difference_over_time_is_of_all_impressions_so_far(sent: Sent) -> None:
    rng, n = np.random.default_rng(0), 2400
    labels, ts_ms = rng.integers(0, 2, n), rng.permutation(n) * HOUR_MS // 100
    late = (ts_ms > 12 * HOUR_MS)[:, None]
    frozen = rng.normal(0, 1, (n, 2)) + labels[:, None]
    better = np.where(late, labels[:, None] * 1.0, frozen)  # equal in the first half, and then always right
    log = replace(sent, ts_ms=ts_ms, user_id=rng.integers(0, 50, n), served=better, frozen=frozen)
    points = over_time(log, np.arange(n), labels, 0, seed=1)
    assert [point["hours"] for point in points[::4]] == pytest.approx([2, 10, 18], abs=0.02)
    assert [point["impressions"] for point in points[::4]] == pytest.approx([200, 1000, 1800], abs=2)
    differences = [point["difference"] for point in points]
    assert differences[:6] == [0.0] * 6 and differences[6:] == sorted(differences[6:]) and differences[6] > 0
    assert points[-1]["low"] < points[-1]["difference"] < points[-1]["high"]
    assert points[-1]["slice"]["served"] == 1.0 and points[-1]["impressions"] == n


def test_percentiles_weigh_by_count() -> None:
    assert weighted_percentiles({1.0: 98, 5.0: 1, 9.0: 1}, (50, 99)) == {"p50": 1.0, "p99": 5.0}
    assert weighted_percentiles({}, (50,)) == {"p50": None}
    lines = [{"written_ms": {"positive": {"1000": 3}}, "confirmed_ms": 2500}]
    assert freshness(lines, "positive") == {1.5: 3}


def test_the_difference_is_paired_and_its_interval_covers_it() -> None:
    rng = np.random.default_rng(3)
    users, labels = rng.integers(0, 300, 4000), rng.integers(0, 2, 4000)
    good, bad = labels + rng.normal(0, 1, 4000), labels + rng.normal(0, 3, 4000)
    figures = compared(labels, good, bad, users, seed=1)
    assert 0 < figures["low"] < figures["difference"] < figures["high"]
    same = compared(labels, good, good, users, seed=1)
    assert same["low"] == same["difference"] == same["high"] == 0
    assert compared(np.ones(3), good[:3], bad[:3], users[:3], seed=1)["served"] is None


def test_pictures_are_drawn(tmp_path: Path) -> None:
    confirmed = [{"written_ms": {"positive": {"0": 2, "900": 1}}, "confirmed_ms": 1000 * i} for i in range(1, 4)]
    freshness_picture(confirmed, 1.0, tmp_path / "freshness.png")
    point = {"served": 0.74, "frozen": 0.73, "difference": 0.01, "low": 0.005, "high": 0.015}
    points = [{"hours": 12.0 * k, "slice": {"served": 0.7, "frozen": 0.7}, **point} for k in range(1, 5)]
    unknown = {"hours": 0.0, "slice": {"served": None, "frozen": None}, **dict.fromkeys(point)}
    auc_picture([unknown, *points], "click", tmp_path / "auc.png")
    for name in ("freshness.png", "auc.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
