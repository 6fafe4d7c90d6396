"""The state of training as bits, to compare two of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.learn.state import State


def everything(state: State) -> dict[str, Any]:
    """All bits that later training depends on."""
    found: dict[str, Any] = {"learned": state.learned}
    for name, table in state.learner.tables.items():
        rows = table.export_since(0)
        order = np.argsort(rows.keys.numpy())
        found[name] = [x.numpy()[order].tobytes() for x in (rows.keys, rows.rows, rows.slots)]
    for name, weight in state.learner.weights.items():
        found[f"dense {name}"] = weight.numpy().tobytes(), state.learner.slots[name].numpy().tobytes()
    return found
