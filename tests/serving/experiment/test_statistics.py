"""Always-valid intervals, by simulation: no effect gives few alarms, an effect is found, a bad split is named."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serving.experiment.statistics import Users, compared, half_width, mismatch

LOOKS = 30


def experiment(seed: int, lift: float = 0.0, users: int = 600) -> list[tuple[Users, Users]]:
    """What two arms look like at each look. Users differ in their rate and come back at many looks."""
    rng = np.random.default_rng(seed)
    rates = np.clip(rng.beta(2, 18, (2, users)) * [[1 + lift], [1]], 0, 1)
    shown = rng.poisson(0.5, (LOOKS, 2, users))
    acted = rng.binomial(shown, rates)
    before = rng.binomial(20, rates / [[1 + lift], [1]]) - 2.0
    looks = []
    for n in range(1, LOOKS + 1):
        seen, done = shown[:n].sum(0), acted[:n].sum(0)
        looks.append([Users(done[a][seen[a] > 0], seen[a][seen[a] > 0], before[a][seen[a] > 0]) for a in (0, 1)])
    return [(arm, other) for arm, other in looks]


def alarm(arm: Users, other: Users) -> bool:
    found = compared(arm, other)
    return found.low > 0 or found.high < 0


def test_looking_thirty_times_raises_few_alarms_where_the_usual_interval_raises_many() -> None:
    runs, alarms, usual = 150, 0, 0
    for seed in range(runs):
        looks = experiment(seed)
        alarms += any(alarm(*look) for look in looks)
        usual += any(abs(compared(*look).difference) > 1.96 * _standard_error(*look) for look in looks)
    assert alarms / runs <= 0.05
    assert usual / runs > 0.15, "the test sees what peeking does"


def _standard_error(arm: Users, other: Users) -> float:
    """Of the adjusted difference, by least squares of z on arm and covariate."""
    z, x, group = (
        np.concatenate(pair)
        for pair in (
            [(u.actions - _rate(arm, other) * u.impressions) / _shown(arm, other) for u in (arm, other)],
            [arm.before, other.before],
            [np.ones(len(arm.actions)), np.zeros(len(other.actions))],
        )
    )
    columns = np.stack([np.ones(len(z)), group, x], 1)
    weights, *_ = np.linalg.lstsq(columns, z, rcond=None)
    spread = ((z - columns @ weights) ** 2).sum() / (len(z) - 3)
    return float(math.sqrt(spread * np.linalg.inv(columns.T @ columns)[1, 1]))


def _rate(arm: Users, other: Users) -> float:
    return float((arm.actions.sum() + other.actions.sum()) / (arm.impressions.sum() + other.impressions.sum()))


def _shown(arm: Users, other: Users) -> float:
    return float(np.concatenate([arm.impressions, other.impressions]).mean())


def test_an_effect_is_found_and_lies_in_its_interval() -> None:
    found = compared(*experiment(1, lift=0.4, users=6000)[-1])
    assert 0 < found.low < 0.4 * 0.1 < found.high


def test_cuped_takes_off_what_the_covariate_tells() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 20_000))
    actions = 10 + 0.8 * x + 0.6 * rng.normal(size=x.shape)  # correlation 0.8
    arms = [Users(actions[a], np.ones(20_000), x[a]) for a in (0, 1)]
    assert compared(*arms).variance_left == pytest.approx(1 - 0.8**2, rel=0.05)
    none = compared(*(users._replace(before=np.zeros(20_000)) for users in arms))
    assert none.variance_left == 1 and none.high - none.low > compared(*arms).high - compared(*arms).low


def test_the_variance_is_that_of_users_and_not_of_impressions() -> None:
    """A few users who see a lot and act alike: resampling users gives the standard error."""
    rng = np.random.default_rng(3)
    shown = rng.geometric(0.05, (2, 800)).astype(float)
    acted = rng.binomial(shown.astype(int), rng.beta(0.5, 2, shown.shape)).astype(float)
    arms = [Users(acted[a], shown[a], np.zeros(800)) for a in (0, 1)]
    drawn = rng.integers(0, 800, (2000, 2, 800))
    rates = [acted[a][drawn[:, a]].sum(1) / shown[a][drawn[:, a]].sum(1) for a in (0, 1)]
    found = compared(*arms)
    effect = 0.1 * acted.sum() / shown.sum()
    bootstrap = float(np.var(rates[0] - rates[1]))
    assert (found.high - found.low) / 2 == pytest.approx(half_width(bootstrap, effect), rel=0.06)


def test_too_little_to_say_is_nan() -> None:
    nobody, one = Users(*[np.zeros(0)] * 3), Users(*[np.ones(1)] * 3)
    for pair in ((nobody, nobody), (one, one), (one, nobody)):
        assert all(math.isnan(v) for v in compared(*pair))
    assert half_width(0.0, 0.1) == math.inf


def test_a_split_that_is_not_the_asked_one_is_seen() -> None:
    assert mismatch([10_400, 9_600], [0.5, 0.5]) < 1e-6
    assert mismatch([10_050, 9_950], [0.5, 0.5]) > 0.3
    assert mismatch([5000, 5000, 4600], [1 / 3] * 3) < 0.001
    assert mismatch([0, 0], [0.5, 0.5]) == mismatch([7], [1.0]) == 1.0
