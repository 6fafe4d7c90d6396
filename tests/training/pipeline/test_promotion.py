"""The gate names each figure that it refuses, and what is allowed."""

from __future__ import annotations

from training.pipeline.promotion import Gate


def test_the_gate_names_the_figure_and_what_is_allowed() -> None:
    good = {"examples": 500, "low": -0.005, "candidate": {"calibration": 1.1}}
    assert Gate().refusals(good) == []
    assert Gate(tolerance=0.001).refusals(good) == [
        "low, the lower bound of candidate - served AUC, is -0.0050, allowed is above -0.001"
    ]
    assert Gate().refusals({**good, "candidate": {"calibration": 1.5}}) == [
        "calibration, the candidate's mean score / rate, is 1.500, allowed is 0.8 to 1.25"
    ]
    assert Gate(least_examples=501).refusals(good) == ["examples is 500, allowed is 501 or more"]
    assert len(Gate().refusals({"examples": 0, "low": None, "candidate": {"calibration": None}})) == 3
