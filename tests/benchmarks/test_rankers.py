"""The parts of the quality benchmark about tasks, position and sampling, in small: each must be able to fail."""

from __future__ import annotations

import numpy as np

from benchmarks.rankers import position, sampling, tasks


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
