"""The page docs/your-data.md is true: its module runs, is short, and its examples decode to what it declared."""

import csv
import json
import re

import numpy as np
import pytest

from streaming.example import Ragged, decode, from_exposures
from streaming.source import load
from tests.support import PROJECT

PAGE = (PROJECT / "docs" / "your-data.md").read_text()
START_MS = 1_700_000_000_000


@pytest.fixture
def shop(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(code.splitlines()) <= 60 and len(PAGE.splitlines()) <= 125
    (tmp_path / "shop.py").write_text(code)
    with (tmp_path / "shop.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["order_ms", "shopper", "product", "brands", "price", "bought_ms"])
        for k in reversed(range(10)):
            at_ms = START_MS + 1000 * k
            out.writerow([at_ms, k % 3, -k, "|".join(map(str, range(k % 3))), k, at_ms + 5 if k % 2 else ""])
    monkeypatch.setenv("SHOP", str(tmp_path / "shop.csv"))
    return load(str(tmp_path / "shop.py"))


def test_the_module_of_the_page_is_a_source(shop):
    history, live = list(shop.history()), list(shop.live())
    assert [e.ts_ms for e in history + live] == [START_MS + 1000 * k for k in range(10)] and len(live) == 2
    assert history[7].features["brands"] == [0] and history[7].outcomes == {"buy": START_MS + 7005}


def test_its_examples_decode_to_what_was_shown(shop):
    shown = list(shop.history())
    known = {"v": 2, "kind": "positive", "written_ms": 1, "scores": {}, "pi": 1, "weights": [1], "values": [None]}
    lines = [
        json.dumps(
            known
            | {"impression_id": e.impression_id, "user_id": e.user_id, "item_id": e.item_id, "features": e.features}
            | {"ts_ms": e.ts_ms, "event_ms": e.ts_ms, "labels": [int("buy" in e.outcomes)]}
        ).encode()
        for e in shown
    ]
    decoded, direct = decode(lines, shop.declaration), from_exposures(shown, shop.declaration)
    assert decoded.bad == [] and decoded.size == 8
    assert np.array_equal(decoded.labels, direct.labels) and direct.labels.sum() == 4
    for name, column in direct.features.items():
        found = decoded.features[name]
        pairs = zip(column, found, strict=True) if isinstance(column, Ragged) else [(column, found)]
        assert all(np.array_equal(*pair) for pair in pairs), name
