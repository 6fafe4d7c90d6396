"""Optimizers of a table's rows: SGD, Momentum, Adagrad, Adam and FTRL, with Keras 3's formulas, defaults and names.

    Table(16, "video", optimizer=Adagrad(0.05))
    Table([Segment(1, FTRL(0.05, l1=0.001), Zeros()), Segment(16, Adam())], "user")

All are lazy: a step does not touch a row without a gradient. So the moments of that row do not fade, and its weights do
not decay. Adam corrects its bias by the row's own count of steps, which is kept in its slots. If every step names every
row, the numbers equal those of Keras.

Settings of all of them, in Keras' order: the gradient is clipped, the weights decay, the rule steps.
  learning_rate  used if `apply` gets none
  weight_decay   w -= w * weight_decay * learning_rate (Loshchilov and Hutter, ICLR 2019: Adam with it is AdamW)
  clip_value     each number of the gradient into [-clip_value, clip_value]
  clip_norm      the L2 norm of a row's gradient over the segment at most this
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, fields

SETTINGS = ("decay", "clip", "clip_norm", "start", "epsilon", "beta_1", "beta_2", "l1", "l2", "shrinkage", "beta")
"""Settings in the order in which the op takes them (optimizer.h). A rule passes 0 for those it does not have."""


@dataclass(frozen=True)
class Optimizer(ABC):
    """Base class of the optimizers: their common settings."""

    learning_rate: float = 0.001
    _: KW_ONLY
    weight_decay: float | None = None
    clip_value: float | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.clip_value is not None and self.clip_norm is not None:
            raise ValueError(f"{self!r}: clip_value and clip_norm are both set, allowed is one of them")
        for field in fields(self):
            value = getattr(self, field.name)
            positive = field.name in ("learning_rate", "clip_value", "clip_norm")
            if value is None and field.default is None or isinstance(value, bool):
                continue
            if not math.isfinite(value) or value < 0 or positive and value == 0:
                allowed = "a number > 0" if positive else "a number >= 0"
                raise ValueError(f"{type(self).__name__}: {field.name} is {value}, allowed is {allowed}")
            if field.name in ("momentum", "beta_1", "beta_2") and value >= 1:
                raise ValueError(f"{type(self).__name__}: {field.name} is {value}, allowed is 0 <= {field.name} < 1")

    @property
    def rule(self) -> str:
        """Returns the op's name of the rule."""
        return type(self).__name__.lower()

    @abstractmethod
    def slot_floats(self, dim: int) -> int:
        """Returns how many numbers it keeps beside `dim` weights."""

    def first_slots(self, dim: int) -> list[float]:
        """Returns the numbers with which it begins: those that grow with the squares begin with `start`."""
        squares = [float(getattr(self, "start", 0.0))] * min(dim, self.slot_floats(dim))
        return squares + [0.0] * (self.slot_floats(dim) - len(squares))

    def settings(self) -> list[float]:
        """Returns its settings in the order of SETTINGS."""
        own = self._own() | {"decay": self.weight_decay, "clip": self.clip_value, "clip_norm": self.clip_norm}
        return [float(own.get(name) or 0) for name in SETTINGS]

    def _own(self) -> dict[str, float | None]:
        return {}


@dataclass(frozen=True)
class SGD(Optimizer):
    """w -= lr * g"""

    learning_rate: float = 0.01

    def slot_floats(self, dim: int) -> int:
        return 0


@dataclass(frozen=True)
class Momentum(Optimizer):
    """m = momentum * m - lr * g; w += m, or w += momentum * m - lr * g by Nesterov (Sutskever et al., ICML 2013)."""

    learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False

    @property
    def rule(self) -> str:
        return "nesterov" if self.nesterov else "momentum"

    def slot_floats(self, dim: int) -> int:
        return dim

    def _own(self) -> dict[str, float | None]:
        return {"beta_1": self.momentum}


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """a += g^2; w -= lr * g / sqrt(a + epsilon); a begins with `start` (Duchi et al., JMLR 12, 2011)."""

    start: float = 0.1
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == 0 and self.epsilon == 0:
            raise ValueError("Adagrad: start and epsilon are 0, allowed is that one of them is > 0")

    def slot_floats(self, dim: int) -> int:
        return dim

    def _own(self) -> dict[str, float | None]:
        return {"start": self.start, "epsilon": self.epsilon}


@dataclass(frozen=True)
class Adam(Optimizer):
    """m and v the moving means of g and g^2; w -= lr * m' / (sqrt(v') + epsilon) (Kingma and Ba, ICLR 2015).

    m' and v' are corrected by the number of steps that the row itself took.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon == 0:
            raise ValueError("Adam: epsilon is 0, allowed is a number > 0")

    def slot_floats(self, dim: int) -> int:
        return 2 * dim + 1

    def _own(self) -> dict[str, float | None]:
        return {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}


@dataclass(frozen=True)
class FTRL(Optimizer):
    """FTRL-Proximal with the rate lr / (beta + sqrt(sum of squares)) (McMahan et al., KDD 2013, algorithm 1).

    l1 makes weights exactly zero; shrinkage is an l2 that the sum of squares does not see.
    """

    start: float = 0.1
    l1: float = 0.0
    l2: float = 0.0
    shrinkage: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == 0 and self.beta == 0 and self.l2 == 0:
            raise ValueError("FTRL: start, beta and l2 are 0, allowed is that one of them is > 0")

    def slot_floats(self, dim: int) -> int:
        return 2 * dim

    def _own(self) -> dict[str, float | None]:
        return {"start": self.start, "l1": self.l1, "l2": self.l2, "shrinkage": self.shrinkage, "beta": self.beta}
