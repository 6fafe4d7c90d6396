"""The example of docs/features.md is true: its views fit its declaration, and its derived features are all there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from features.plan import plan
from streaming.source import Source
from tests.support import PROJECT


def test_the_views_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/features.md").read_text(), re.S)
    (tmp_path / "products.csv").write_text(
        "product,since_ms,brands,euros\n7,1700000000000,1|2,9.5\n8,1700000000000,,3\n"
    )
    monkeypatch.setenv("PRODUCTS", str(tmp_path / "products.csv"))
    shop: dict[str, Any] = {}
    exec(code, shop)
    made = plan(cast(Source, SimpleNamespace(**shop)))
    table = shop["views"].items()
    assert set(table.column_names) == {made.item_key, "ts_ms", *(c.name for c in made.columns["video"])}
    assert table["brands"].to_pylist() == [[1, 2], []]
    derived = shop["derive"]({"euros": [9.5, None], "user_shown_all": [0, 3]})
    assert set(derived) == {f.name for f in made.features["derived"]}
    assert all(len(column) == 2 for column in derived.values())
