"""Attributes from messages: the newest wins in any order, and the store's rows are complete, now and in the past."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.attributes import Attributes, Row
from features.batch_views import refresh
from features.reproduction import reproduce
from features.rows import SqliteRows
from features.store import Features, now_ms
from streaming.publisher import impression, item, user
from streaming.views import Column
from tests.features.test_push import archived
from tests.support import shop_views

SHOP, START_MS = str(Path(shop_views.__file__)), shop_views.START_MS
COLUMNS = (Column("price", "number"), Column("brands", "ints"), Column("city", "int"))
MESSAGES = [(10, {"price": 1, "city": 5}), (20, {"price": 2}), (30, {"brands": [3]}), (15, {"brands": [9], "city": 6})]


def logged(row: Row, now: int) -> dict[str, Any]:
    """The row as the store's log has it."""
    at = datetime.fromtimestamp(row.next_event_ms(now) / 1000, UTC)
    return {**row.values, "times": row.times, "event_timestamp": at}


@pytest.mark.parametrize("written_after", range(5))
def test_the_newest_value_of_each_attribute_wins_in_any_order_and_however_often_it_comes(written_after: int) -> None:
    rows, events = set(), set()
    for order in permutations(MESSAGES):
        row = Row(COLUMNS, None, "times")
        for k, message in enumerate((*order, *order[:2])):
            if k == written_after:
                row = Row(COLUMNS, logged(row, 100), "times") if k else row
            row.upsert(*message)
        rows.add(str((row.values, row.times)))
        events.add(row.next_event_ms(100) >= 15)
    assert len(rows) == 1 and "{'price': 2.0, 'brands': [3], 'city': 6}" in rows.pop() and events == {True}


def test_a_row_of_the_table_and_messages() -> None:
    def merged(ts_ms: int, values: dict[str, Any]) -> dict[str, Any]:
        row = Row(COLUMNS, {**before, "times": None, "event_timestamp": datetime.fromtimestamp(0.02, UTC)}, "times")
        row.upsert(25, {"price": 7})
        row.upsert(19, {"city": 9})  # before the table's row
        row.replace(ts_ms, values)
        return row.values

    before, table = {"price": 1.0, "brands": [1], "city": None}, {"price": 2.0, "brands": [2], "city": 2}
    assert merged(19, table) == {**before, "price": 7.0}
    assert merged(20, table) == {**table, "price": 7.0}, "a correction, and the column of a source that has grown"
    assert merged(25, table) == {**table, "price": 7.0}
    assert merged(26, table) == table


def test_a_new_item_is_in_the_store_complete_and_what_was_read_is_the_past(tmp_path: Path) -> None:
    store = Features(tmp_path / "features", SHOP)
    refresh(store)
    attributes, large = Attributes(store), 2**53 + 1  # no float
    asked, rows = [], []

    def read(user_id: int, item_id: int) -> dict[str, Any]:
        (row,), read_ms = store.read(user_id, [item_id], [START_MS], [{}])
        asked.append({"user_id": user_id, "item_id": item_id, "ts_ms": START_MS, "read_ms": read_ms})
        rows.append(row)
        return row

    def push(*messages: tuple[str, dict[str, Any]]) -> dict[str, int]:
        for topic, event in messages:
            attributes.take(topic, event)
        return attributes.push()

    at = now_ms()
    assert read(1, 99)["brands"] == [] and read(77, 1)["city"] == -1
    # Two new items and a new user; one row has no brands, one no price. One message is ahead of the clock.
    new = (
        ("items", item(99, at, {"brands": [large]})),
        ("items", item(98, at + 50_000, {"price": 10**30})),
        ("users", user(77, at, {"city": large})),
        ("users", user(78, at, {})),
    )
    assert push(*new) == {"video": 2, "profile": 1}
    assert read(77, 99)["brands"] == [large] and rows[-1]["city"] == large
    assert read(1, 98)["brands"] == []
    assert push(*new) == {}, "the same again"
    # An attribute that comes late, beside one that is too old, each in a write of its own.
    assert push(("items", item(99, at - 5000, {"price": 4.5, "brands": [1]}))) == {"video": 1}
    assert read(1, 99)["brands"] == [large]
    assert push(("items", item(99, at, {"brands": [2]}))) == {"video": 1}, "a correction of the same time"
    assert read(1, 99)["brands"] == [2]
    # A row of the table: what the message leaves out stays.
    assert push(("items", item(2, at, {"brands": [5, 6]}))) == {"video": 1}
    assert read(4, 2) == {**rows[-1], "brands": [5, 6], "city": 1}
    newest = {row["product"]: row for row in store.offline.newest("video").to_pylist()}
    assert [newest[k]["price"] for k in (2, 98, 99)] == [1.5, 1e30, 4.5] and newest[98]["brands"] is None

    store.write({"profile": {"shopper": [70, 71], "ts_ms": [at, at], "city": [large, None]}})
    assert [read(user_id, 1)["city"] for user_id in (70, 71)] == [large, -1], "null is no float"

    assert refresh(store) == {}, "the table has nothing newer"
    assert store.historical(pa.Table.from_pylist(asked)).to_pylist() == rows
    online = store.feast.get_online_features(
        features=["video:price"], entity_rows=[{"product": k} for k in (2, 98, 99)]
    )
    assert online.to_dict()["price"] == [1.5, 1e30, 4.5]


def dying(self: SqliteRows, view: str, rows: Any) -> None:
    """Killed when a row is logged, and before it is readable."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("of_table", [True, False])
def test_a_row_of_a_killed_write_is_written_again(
    tmp_path: Path, of_table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Features(tmp_path / "features", SHOP)
    committed_ms = now_ms()

    def write() -> dict[str, int]:
        attributes = Attributes(store)
        attributes.take("users", user(3, START_MS + 10, {"city": 44}))
        return refresh(store) if of_table else attributes.push()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SqliteRows, "write", dying)
        write()
    (row,), read_ms = store.read(3, [1], [START_MS], [{}])
    served = archived([impression("i", "r", 3, 1, START_MS, 0, row, {}, read_ms=read_ms)])
    assert row["city"] == -1 and set(reproduce(store, served)["why"]) == {"unfinished"}
    store.repair(committed_ms)
    assert reproduce(store, served)["share"] == 1
    assert write()["profile"] >= 1
    assert store.read(3, [1], [START_MS], [{}])[0][0]["city"] == (0 if of_table else 44)
    store.repair(committed_ms)
    assert write() == {}
