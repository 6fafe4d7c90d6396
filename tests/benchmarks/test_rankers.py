"""The parts of the quality benchmark in small: each must be able to fail."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import movielens
from benchmarks.rankers import collisions, position, sampling, tasks
from common.errors import InputError


def test_only_the_corrected_loss_is_calibrated_at_one_percent_of_the_negatives() -> None:
    size = {"examples": 120_000, "judged": 60_000}
    corrected = sampling.calibration(0.01, 0, **size)
    assert (np.abs(corrected - 1) < 0.25).all(), corrected
    assert (sampling.calibration(0.01, 0, corrected=False, **size) > 2).all()


def test_the_tower_brings_the_scores_nearer_to_the_truth() -> None:
    made = position.lists(0, "additive", "old ranker", 6000)
    plain, tower = (position.tau(made, position.MODEL + more, 0) for more in ("", "&positions=10"))
    assert tower > plain + 0.03


def test_the_peer_of_the_experts_has_as_many_multiplications() -> None:
    peer = tasks.equal(tasks.EXPERTS, "mmoe?dim=1&bottom=0", tasks.GENERATED)
    counts = [tasks.multiplications(model, tasks.GENERATED) for model in (tasks.EXPERTS, peer)]
    assert "experts=1" in peer and abs(counts[1] / counts[0] - 1) < 0.03


def test_the_papers_collisions_come_out_exactly() -> None:
    """Liu et al., 2022, arXiv 2209.07663, Table 1."""
    assert (collisions.used(162_541), collisions.used(59_047)) == (149_970, 57_361)


def test_ids_of_one_bucket_share_the_row_of_the_first() -> None:
    bucket = collisions.bucket_of(300, 500, "7:")
    of = collisions.merged(300, 600_000, "7:")  # 1,000,000 buckets to 600,000 ids are 500 to 300
    assert [int(np.flatnonzero(bucket == b)[0]) for b in bucket] == of.tolist() and len(set(of.tolist())) < 300


def test_colliding_ids_cost_auc() -> None:
    rng = np.random.default_rng(0)
    user, movie = rng.integers(0, 200, 40_000), rng.integers(0, 100, 40_000)
    logit = rng.normal(size=200)[user] + rng.normal(size=100)[movie]
    shown = movielens.Ratings(user, movie, np.where(rng.random(40_000) < 1 / (1 + np.exp(-2 * logit)), 5, 1))
    hashed = shown._replace(user=collisions.merged(200, 2_000_000)[user])  # 100 buckets
    own, shared = (collisions.curve(collisions.Split.draw(of, 0, 512), 0, 2) for of in (shown, hashed))
    assert np.subtract(own, shared).min() > 0.01


def test_movielens_is_read_from_any_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINUTEHAND_DATA", str(tmp_path))
    with pytest.raises(InputError, match="MovieLens 1M is missing: fetch https://.* to .*ml-1m.zip"):
        movielens.ratings()
    text = b"7::1193::5::978300760\n2::661::3::978302109\n7::661::4::978301968\n"
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", text)
    with pytest.raises(InputError, match="ml-1m.zip: sha256 is .*, allowed is a6898adb"):
        movielens.ratings()
    monkeypatch.setattr(movielens, "SHA256", movielens.sha256((tmp_path / "ml-1m.zip").read_bytes()))
    packed = movielens.ratings()
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.dat").write_bytes(text)
    for read in (packed, movielens.ratings()):
        assert [column.tolist() for column in read] == [[1, 0, 1], [1, 0, 0], [5, 3, 4]]
