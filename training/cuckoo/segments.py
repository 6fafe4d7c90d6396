"""Segments of a row: each has a number of weights, an optimizer and an initializer of its own.

A weight's first value is a function of (seed, name of the table, key, column). So it depends neither on the order of
inserts nor on the number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.cuckoo.optimizers import Adagrad, Optimizer


@dataclass(frozen=True)
class Zeros:
    """Every weight begins at 0."""


@dataclass(frozen=True)
class Constant:
    """Every weight begins at `value`."""

    value: float


@dataclass(frozen=True)
class Uniform:
    """Weights begin uniform in [-scale, scale)."""

    scale: float = 0.05


@dataclass(frozen=True)
class Normal:
    """Weights begin normal, with mean 0 and standard deviation `scale`."""

    scale: float = 0.01


Initializer = Zeros | Constant | Uniform | Normal


@dataclass(frozen=True)
class Segment:
    """`dim` weights of a row."""

    dim: int
    optimizer: Optimizer = Adagrad()
    initializer: Initializer = Normal()

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"Segment: dim is {self.dim}, allowed is dim >= 1")
        if not isinstance(self.optimizer, Optimizer) or type(self.optimizer) is Optimizer:
            raise ValueError(
                f"Segment: optimizer is {self.optimizer!r}, allowed are SGD, Momentum, Adagrad, Adam, FTRL"
            )
        if not isinstance(self.initializer, Initializer):
            raise ValueError(
                f"Segment: initializer is {self.initializer!r}, allowed are Zeros, Constant, Uniform, Normal"
            )
        if not math.isfinite(self.scale):
            raise ValueError(f"Segment: initializer is {self.initializer!r}, allowed is a finite number")

    @property
    def scale(self) -> float:
        """Returns the initializer's one number."""
        match self.initializer:
            case Zeros():
                return 0.0
            case Constant(value):
                return value
            case Uniform(scale) | Normal(scale):
                return scale

    def first_slots(self) -> npt.NDArray[np.float32]:
        """Returns the optimizer's numbers of a new row: float32[slot_floats]."""
        return np.array(self.optimizer.first_slots(self.dim), np.float32)

    @property
    def slot_floats(self) -> int:
        """Returns how many numbers the optimizer keeps in the row."""
        return self.optimizer.slot_floats(self.dim)
