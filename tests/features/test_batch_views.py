"""A source that grows, and whose items and users change, reaches its feature store at the next start."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from features.batch_views import refresh
from features.store import Features, now_ms
from streaming.source import load
from tests.support import shop_views

SHOP = str(Path(shop_views.__file__))
GROWN = """
from dataclasses import replace
import pyarrow as pa
from streaming.declaration import Feature
from tests.support import shop_views as before
from tests.support.shop_views import history, live

more = Feature("category", "id", view="video", default=3)
declaration = replace(before.declaration, features=(*before.declaration.features, more))

def items():
    rows = before.items().to_pylist()
    rows = [{**row, "category": row["product"] % 7 + 10} for row in (*rows, {**rows[0], "product": 99})]
    return pa.Table.from_pylist(rows)

views = replace(before.views, items=items)
"""


def test_new_columns_rows_and_values_come_into_the_store(tmp_path: Path) -> None:
    at = shop_views.START_MS
    old = Features(tmp_path / "features", SHOP)
    assert refresh(old) == {"profile": shop_views.SHOPPERS, "video": shop_views.PRODUCTS}
    assert refresh(old) == {}
    before_ms = now_ms()
    before, _ = old.read(1, [2, 99], [at] * 2, [{}] * 2)

    module = tmp_path / "grown.py"
    module.write_text(GROWN)
    store = Features(tmp_path / "features", str(module))
    (unfilled, _), _ = store.read(1, [2, 99], [at] * 2, [{}] * 2)
    assert unfilled == {**before[0], "category": 3}
    assert refresh(store) == {"video": shop_views.PRODUCTS + 1}
    assert refresh(store) == {}
    (known, new), read_ms = store.read(1, [2, 99], [at] * 2, [{}] * 2)
    assert known == {**before[0], "category": 12} and new == {**before[1], "category": 11}
    assert store.offline.newest("video").num_rows == len(load(str(module)).views.items())

    def asked(ms: int) -> pa.Table:
        return store.historical(
            pa.table({"user_id": [1, 1], "item_id": [2, 99], "ts_ms": [at] * 2, "read_ms": [ms] * 2})
        )

    assert asked(read_ms).to_pylist() == [known, new]
    assert [row["category"] for row in asked(before_ms).to_pylist()] == [3, 3], "nobody could read it then"
