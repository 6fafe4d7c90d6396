"""DeepFM over gathered rows, one head a task.

The deep part of task t is b_t + h_t . tower([v_1 .. v_m, x]), with one tower for all tasks ("shared bottom"), and a
bias b_t and a head h_t of its own (Guo et al., DeepFM, IJCAI 2017, arXiv 1703.04247, equations 3-4). The other terms
are those of ranker.py.
"""

from __future__ import annotations

from typing import Any

from streaming.declaration import Declaration
from training.models.ranker import Ranker


class DeepFM(Ranker):
    """DeepFM with Adagrad on rows and dense weights.

    `hidden`: units of the tower's layers, "128x64". Ranker describes the other settings.
    """

    def __init__(
        self, declaration: Declaration, *, seed: int = 0, dim: int = 16, hidden: str = "128x64",
        row_rate: float = 0.015, row_start: float = 1e-7, row_scale: float = 0.005, dense_rate: float = 0.05,
        dense_start: float = 1e-6, positions: int = 0, position_dropout: float = 0.1,
        sizes: str = "",
    ) -> None:  # fmt: skip
        super().__init__(
            declaration, seed=seed, dim=dim, row_rate=row_rate, row_start=row_start, row_scale=row_scale,
            dense_rate=dense_rate, dense_start=dense_start, positions=positions, position_dropout=position_dropout,
            sizes=sizes,
        )  # fmt: skip
        units, tasks = _units(hidden), declaration.tasks
        widths = [len(self.inputs), *units]
        self._tower = [
            self._layer(f"hidden_{i}", widths[i], n, (None if i else self.inputs, None), activation="relu")
            for i, n in enumerate(units)
        ]
        self._heads = self._layer("heads", units[-1], len(tasks), (None, tasks))
        self._declare_wide()

    def _deep(self, inputs: Any) -> Any:
        for layer in self._tower:
            inputs = layer(inputs)
        return self._heads(inputs)


def _units(hidden: str) -> list[int]:
    try:
        units = [int(text) for text in hidden.split("x")]
        if min(units) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"model 'deepfm': hidden is {hidden!r}, allowed are numbers of units such as 128x64") from None
    return units


build = DeepFM
