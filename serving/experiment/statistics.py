"""What the users of two arms did, compared: a difference with an interval that stays valid at every look.

A person looks at a running experiment as often as they like and stops when they like. The usual 95 % interval is wrong
then: with 30 looks, about a third of experiments without any effect show one. The intervals here hold at all looks at
once. They mix the effect over a normal distribution (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon, Annals of
Statistics 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences", section 3.2), for the asymptotically
normal estimate below (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Annals of Statistics 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
EFFECT = 0.1
"""The relative effect for which the interval is narrowest: 10 % of the rate."""
MISMATCH_P = 0.001
"""Below this probability the users are not split as the arms say."""

Array = NDArray[np.float64]


class Users(NamedTuple):
    """The users of an arm, one entry each: actions float64[n], impressions float64[n], and the covariate float64[n].

    The covariate is a number that was known before the experiment began, such as actions less expected actions.
    """

    actions: Array
    impressions: Array
    before: Array

    @property
    def rate(self) -> float:
        """Actions an impression; NaN without an impression."""
        impressions = self.impressions.sum()
        return float(self.actions.sum() / impressions) if impressions else math.nan


class Difference(NamedTuple):
    """An arm's rate less another's, with its always-valid 95 % interval; `variance_left` is CUPED's (1: no gain)."""

    difference: float
    low: float
    high: float
    variance_left: float


def compared(arm: Users, other: Users, alpha: float = ALPHA) -> Difference:
    """The rate of `arm` less the rate of `other`; NaN while one of them has fewer than two users or no impression.

    A rate is a ratio of sums over users, whose impressions depend on each other. So a user is one observation: the
    delta method (Deng, Knoblich and Lu, KDD 2018, section 3) makes z = (actions - R impressions) / mean impressions of
    each, R the rate of both arms. CUPED (Deng, Xu, Kohavi and Walker, WSDM 2013, equation 4) takes off what the
    covariate tells: z - theta (x - mean x), theta = cov(z, x) / var(x).
    """
    sizes = [len(users.actions) for users in (arm, other)]
    both = Users(*(np.concatenate(pair) for pair in zip(arm, other, strict=True)))
    if min(sizes) < 2 or not (arm.impressions.sum() and other.impressions.sum()):
        return Difference(*[math.nan] * 4)
    z = (both.actions - both.rate * both.impressions) / both.impressions.mean()
    adjusted = z - _theta(z, both.before) * (both.before - both.before.mean())
    difference, variance = _means(adjusted, sizes[0])
    raw = _means(z, sizes[0])[1]
    half = half_width(variance, EFFECT * both.rate, alpha)
    return Difference(difference, difference - half, difference + half, variance / raw if raw else math.nan)


def half_width(variance: float, effect: float, alpha: float = ALPHA) -> float:
    """Half of the interval of an estimate with this variance; `effect` is the standard deviation of the mixture.

    sqrt(v (v + t) / t * log((v + t) / (v alpha^2))), with v the variance and t = effect^2.
    """
    t = effect**2
    if not variance > 0 or not t > 0:
        return math.inf
    return math.sqrt(variance * (variance + t) / t * math.log((variance + t) / (variance * alpha**2)))


def mismatch(counts: Sequence[int], shares: Sequence[float]) -> float:
    """The probability of users that differ from the shares by as much as these: of the arm that differs most.

    It is two-sided and normal, times the number of arms (Bonferroni), at most 1. Fabijan et al., KDD 2019, tell what a
    sample ratio mismatch means: an arm loses or gains users, and no comparison of it holds.
    """
    total = sum(counts)
    if not total or len(counts) < 2:
        return 1.0
    deviations = (
        abs(n - total * share) / math.sqrt(total * share * (1 - share)) for n, share in zip(counts, shares, strict=True)
    )
    least = min(math.erfc(z / math.sqrt(2)) for z in deviations)
    return min(1.0, least * (1 if len(counts) == 2 else len(counts)))


def _theta(z: Array, x: Array) -> float:
    covariance = np.cov(z, x)
    return float(covariance[0, 1] / covariance[1, 1]) if covariance[1, 1] > 0 else 0.0


def _means(values: Array, first: int) -> tuple[float, float]:
    """The difference of the means of values[:first] and values[first:], and its variance."""
    parts = values[:first], values[first:]
    return float(parts[0].mean() - parts[1].mean()), float(sum(part.var(ddof=1) / len(part) for part in parts))
