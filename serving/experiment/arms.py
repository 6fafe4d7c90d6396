"""The arms of an experiment: which of the served models answers which user. See docs/experiments.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serving.signatures import FROZEN, RANKER
from streaming.hashing import fnv1a64, mix64

SERVED = "served"
"""The arm of the ranker, which deltas keep fresh. Any other arm is named like the model that answers it."""

_SPEC = re.compile(r"([a-z][a-z0-9_-]{0,40}):([0-9]+(?:\.[0-9]+)?)")
_SALT = int(fnv1a64(["arm:"])[0])


class Arm(NamedTuple):
    """`share` is the part of all users, above 0 and at most 1."""

    name: str
    share: float

    @property
    def model(self) -> str:
        """The name of the model in TensorFlow Serving."""
        return RANKER if self.name == SERVED else self.name


def arms_of(text: str, models: Sequence[str] | None = None) -> list[Arm]:
    """The arms of a setting such as `served:50,frozen:50`: names with weights, of which the shares are made.

    `models` are the names of the served models (None: not known here). Raises ValueError.
    """
    allowed = None if models is None else [SERVED, FROZEN, *(name for name in models if name != RANKER)]
    weights: dict[str, float] = {}
    for part in text.split(","):
        match = _SPEC.fullmatch(part.strip())
        if match is None or match[1] in weights or not float(match[2]) > 0:
            raise ValueError(f"{part.strip()!r} is no arm; allowed is name:weight, each name once, weights above 0")
        if allowed is not None and match[1] not in allowed:
            raise ValueError(f"{match[1]!r} is no arm; allowed are {', '.join(allowed)}")
        weights[match[1]] = float(match[2])
    return [Arm(name, weight / sum(weights.values())) for name, weight in weights.items()]


def places(users: ArrayLike, arms: Sequence[Arm]) -> NDArray[np.int64]:
    """The place in `arms` of each user's arm: int64[n]. A user's arm depends on their id and on the arms alone.

    A user's hash is a point of [0, 1), on which the arms lie one after the other.
    """
    hashed = mix64(np.atleast_1d(np.asarray(users, np.int64)).view(np.uint64) ^ np.uint64(_SALT))
    point = (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    ends = np.cumsum([arm.share for arm in arms])[:-1]
    return np.searchsorted(ends, point, side="right").astype(np.int64)


def arm_of(user_id: int, arms: Sequence[Arm]) -> str:
    """The name of a user's arm."""
    return arms[int(places([user_id], arms)[0])].name
