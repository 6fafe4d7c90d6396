"""What the served model has forgotten: both models score the same exposures, and the labels are those of the window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from infra.replay import forgetting
from serving.signatures import FROZEN
from streaming.declaration import Declaration, Feature
from streaming.source import Exposure

DECLARATION = Declaration("shop", (Feature("shopper", "id"),), ("buy", "rate"), "buy", window_ms=1000)


class Scores:
    """The frozen base is right; the served model scores all alike."""

    asked: list[int] = []

    def __init__(self, addresses: Sequence[str], model: str, declaration: Declaration, timeout: float) -> None:
        self.model = model

    def score(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[float]], int]:
        self.asked.append(len(rows))
        right = [float(row["shopper"] % 2) for row in rows]
        return {"buy": right if self.model == FROZEN else [0.5] * len(rows), "rate": [0.0] * len(rows)}, 1

    def close(self) -> None:
        pass


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Exposure]:
    """Odd shoppers buy in the window; shopper 2 buys after it."""
    monkeypatch.setattr(forgetting, "Scorer", Scores)
    Scores.asked = []
    times = {1: 1000, 2: 1001, 3: 0}
    return [
        Exposure(f"e{k}", k % 4, 7, 5000, {"shopper": k % 4}, {"buy": 5000 + times[k % 4]} if k % 4 else {})
        for k in range(2000)
    ]


def test_the_base_is_compared_with_the_served_model(shown: list[Exposure]) -> None:
    figures = forgetting.forgetting(shown, ["127.0.0.1:1"], DECLARATION, seed=1)
    assert figures is not None and figures["impressions"] == 2000
    assert (figures["base"], figures["served"], figures["forgotten"]) == (1.0, 0.5, 0.5)
    assert not figures["reached"] and figures["low"] <= 0.5 <= figures["high"]
    assert Scores.asked == [1024, 976] * 2


def test_without_both_labels_nothing_is_compared(shown: list[Exposure]) -> None:
    assert forgetting.forgetting([], ["127.0.0.1:1"], DECLARATION, seed=1) is None
    assert forgetting.forgetting([e for e in shown if not e.user_id % 2], ["127.0.0.1:1"], DECLARATION, seed=1) is None
    assert Scores.asked == []
