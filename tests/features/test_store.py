"""The feature store on real Feast, SQLite and DuckDB: definitions, reads, writes in any order, TTL, the past."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from common.errors import InputError
from features.adds import AddLog
from features.plan import plan_of
from features.profile.judge import Judge
from features.push import Counts, begin
from features.store import REPO, Features, main, now_ms
from streaming.slots import MINUTE_MS
from streaming.source import load
from tests.streaming.sources import test_kuairand
from tests.support import PROJECT, through_feast

SHOP = str(PROJECT / "tests/support/shop_views.py")
START_MS = 1_700_000_000_000
DECLARATION = load(SHOP).declaration


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """The shop's batch views; the tests count what they need, each of products of its own."""
    store = Features(tmp_path_factory.mktemp("features"), SHOP)
    for view, table in (("profile", load(SHOP).views.users()), ("video", load(SHOP).views.items())):
        store.write({view: table.to_pydict()})
    return store


def priced(product: int, at_ms: int, price: float) -> dict[str, list[Any]]:
    return {"product": [product], "ts_ms": [at_ms], "brands": [[product]], "price": [price]}


def price(store: Features, product: int) -> Any:
    """Through Feast's own online read."""
    asked = {"features": ["video:price"], "entity_rows": [{"product": product}]}
    return store.feast.get_online_features(**asked).to_dict()["price"][0]


@contextmanager
def counting(store: Features) -> Iterator[tuple[Judge, Callable[[], object]]]:
    """A judge of the shop's events, and the commit of what it has judged."""
    with Counts(store) as counts:
        judge = Judge(store.plan.slots, DECLARATION.window_ms, 1000)
        counts.restore(judge)
        yield judge, lambda: counts.commit(judge, {})


def test_feast_apply_by_its_own_command(tmp_path: Path) -> None:
    environment = {**os.environ, "MINUTEHAND_SOURCE": "simulator", "MINUTEHAND_FEATURES": str(tmp_path)}
    Features(tmp_path, "simulator")
    (tmp_path / "registry.db").unlink()
    applied = subprocess.run(
        [sys.executable, "-m", "feast.cli.cli", "-c", str(REPO), "apply"],
        capture_output=True, text=True, env=environment, timeout=250,
    )  # fmt: skip
    assert applied.returncode == 0, applied.stderr[-3000:]
    assert Features(tmp_path, "simulator").feast.get_feature_service("ranker")


@pytest.mark.parametrize("source", ["simulator", "kuairand", SHOP])
def test_keys_and_service_are_the_declared_features(source: str, tmp_path: Path) -> None:
    from feast import FeatureStore

    store = Features(tmp_path, source)
    assert isinstance(store.feast, FeatureStore)
    service = [f.name for p in store.feast.get_feature_service("ranker").feature_view_projections for f in p.features]
    keys = [f.name for view in ("user", "item") for f in plan_of(source).features[view]]
    declared = [f.name for f in load(source).declaration.features]
    assert len(service) == len(set(service)) and sorted(keys + service) == sorted(declared)
    assert {e.name for e in store.feast.list_entities()} >= {"user", "item"}


def test_every_kind_of_feature_as_declared_with_defaults(shop: Features) -> None:
    (known, unknown), _ = shop.read(4, [2, 999], [START_MS] * 2, [{"search": [3], "page": 2}, {}])
    assert known == {
        "shopper": 4, "product": 2, "city": 1, "brands": [2, 3], "city_brands": [1002, 1003], "item_seen": 0.0,
        "item_hot": 0.0, "user_seen": 0.0, "search": [3], "page": 2,
    }  # fmt: skip
    assert unknown == known | {"product": 999, "brands": [], "city_brands": [], "search": [], "page": 0}
    (stranger,), _ = shop.read(77, [2], [START_MS], [{}])
    assert stranger["city"] == -1 and stranger["city_brands"] == [2, 3]


def test_an_older_event_never_overwrites_a_newer_one(shop: Features) -> None:
    at_ms = START_MS + 5000
    other = Features(shop.folder, SHOP)  # a second writer
    shop.write({"video": priced(3, at_ms, 7)})
    other.write({"video": priced(3, at_ms - 1, 4)})
    assert price(shop, 3) == price(other, 3) == 7
    newer, older = priced(3, at_ms + 9, 9), priced(3, at_ms + 8, 8)
    both = {name: [*newer[name], *older[name]] for name in newer}
    other.write({"video": both})  # within one write, the older one last
    assert price(shop, 3) == 9
    # Through Feast's own write, and by a store that was opened later.
    frame = pd.DataFrame({"product": [3], "brands": [[3]], "price": [1.0]})
    frame["event_timestamp"] = frame["arrived"] = pd.to_datetime([at_ms], unit="ms", utc=True)
    shop.feast.write_to_online_store("video", frame)
    again = Features(shop.folder, SHOP)
    again.write({"video": priced(3, at_ms + 2, 2)})
    assert price(again, 3) == 9
    again.write({"video": priced(3, at_ms + 10, 10)})
    assert price(shop, 3) == 10


def test_a_counted_view_takes_no_rows(shop: Features) -> None:
    frame = pd.DataFrame({"product": [3], **{column.name: [7] for column in shop.plan.columns["counters"]}})
    frame["event_timestamp"] = frame["arrived"] = pd.to_datetime([START_MS], unit="ms", utc=True)
    with pytest.raises(InputError, match="view counters takes no rows, since the feature push counts"):
        shop.feast.write_to_online_store("counters", frame)


def test_materialize_fills_an_empty_online_store_and_never_goes_back(
    shop: Features, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for k in range(1, 4):
        shop.write({"video": priced(5, START_MS + k * 1000, k)})
    assert shop.materialize(START_MS, START_MS + 2500)["video"] >= 1
    assert price(shop, 5) == 3
    for file in shop.folder.glob("online.db*"):
        file.rename(tmp_path / file.name)
    words = ["materialize", "--source", SHOP, "--folder", str(shop.folder), "--begin", str(START_MS)]
    assert main([*words, "--end", str(START_MS + 2500)]) == 0
    assert '"video": ' in capsys.readouterr().out
    assert price(Features(shop.folder, SHOP), 5) == 2
    for file in tmp_path.glob("online.db*"):
        file.rename(shop.folder / file.name)


def test_an_idle_hour_empties_by_itself_online_and_in_the_past(shop: Features) -> None:
    """Only the clock moves. What Feast reads, what the ranker reads and what the join says afterwards are equal."""
    reads = []
    with counting(shop) as (judge, commit):
        for k in range(5):
            judge.shown(f"idle {k}", 4, 6, START_MS + k, {})
            judge.action(f"idle {k}", "buy", START_MS + k)
        for minutes in (0, 60, 61):
            judge.clock("impressions", 0, START_MS + minutes * MINUTE_MS, 1)
            commit()
            asked = [6, 2], [START_MS] * 2, [{}] * 2
            rows, read_ms = shop.read(4, *asked)
            assert rows == through_feast.read(shop, 4, *asked)
            reads.append((rows[0]["item_hot"], rows[0]["item_seen"], read_ms))
    assert [hot for hot, *_ in reads] == [5, 5, 0] and [seen for _, seen, _ in reads] == [5, 5, 5]
    asked = {"user_id": [4] * 3, "item_id": [6] * 3, "ts_ms": [START_MS] * 3, "read_ms": [at for *_, at in reads]}
    past = shop.historical(pa.table(asked))
    assert past["item_hot"].to_pylist() == [5, 5, 0] and past["item_seen"].to_pylist() == [5, 5, 5]
    unread = [
        "counters:item_buy_rate_1h",
        "counters:item_buy_rate_all",
        "counters:item_buy_ms",
        "activity:user_item_7d",
    ]
    asked_of = [{"product": 6, "shopper": 4}, {"product": 14, "shopper": 5}]
    online = shop.feast.get_online_features(features=unread, entity_rows=asked_of).to_dict()
    assert [online[name.split(":")[1]] for name in unread] == [[None] * 2, [1.0, None], [START_MS + 4, None], [[6], []]]


def test_the_past_is_as_it_was_readable_row_for_row(shop: Features) -> None:
    """Rows come back in their order and none is dropped: of unknown keys, of times before anything, and repeated."""
    reads = []
    with counting(shop) as (judge, commit):
        for k in range(5):
            if k:
                judge.shown(f"past {k}", 3, 7, judge.now_ms + 1, {})
            commit()
            (row,), read_ms = shop.read(2, [7], [START_MS + 600], [{"search": [k], "page": k}])
            assert row["item_seen"] == k
            reads.append((7, read_ms, row))
    asked = [reads[k] for k in (3, 0, 4, 1, 3, 2)]
    table = pa.table(
        {
            "user_id": [2] * 8,
            "item_id": [item for item, _, _ in asked] + [12345, 7],
            "ts_ms": [START_MS + 600] * 8,
            "read_ms": [at for _, at, _ in asked] + [asked[0][1], 1000],
            "feature_search": [row["search"] for _, _, row in asked] + [[], []],
            "feature_page": [row["page"] for _, _, row in asked] + [0, 0],
        }
    )
    found = shop.historical(table).to_pylist()
    assert found[:6] == [row for _, _, row in asked]
    assert [row["item_seen"] for row in found[6:]] == [0.0, 0.0]
    assert found[6]["city"] == 2 and found[7]["city"] == -1  # before anything was readable
    assert shop.historical(table.slice(0, 0)).num_rows == 0


def test_merged_files_say_the_same(shop: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AddLog(shop.folder, shop.plan.slots)
    before = shop.offline.newest("video"), shop.offline.arrivals("video"), log.of([2], [6, 7])
    monkeypatch.setattr("features.offline.COMPACT_FILES", 2)
    monkeypatch.setattr("features.adds.COMPACT_FILES", 2)
    for _ in range(2):
        shop.offline.compact()
        log.compact()
    for folder in ("offline/video", "adds"):
        assert len(list((shop.folder / folder).glob("*.parquet"))) == 1
    assert shop.offline.newest("video").equals(before[0])
    assert {k: v.tolist() for k, v in shop.offline.arrivals("video").items()} == {
        k: v.tolist() for k, v in before[1].items()
    }
    assert log.of([2], [6, 7]).equals(before[2])


def test_a_broken_file_stops_neither_repair_nor_the_past(shop: Features) -> None:
    folder = shop.folder / "offline" / "video"
    asked = pa.table({"user_id": [1], "item_id": [8], "ts_ms": [START_MS + 9], "read_ms": [now_ms() + 60_000]})
    for use in (lambda: shop.repair(0), lambda: shop.historical(asked)):
        arrived_ms = shop.write({"video": priced(8, START_MS, 5)})
        (folder / f"{arrived_ms}.parquet").write_bytes(b"PAR1")
        use()
        assert (folder / f"{arrived_ms}.parquet.broken").exists()


def test_kuairands_features_of_the_log_are_what_the_store_would_have_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On made-up files: each live event is counted at its time, and each impression is read before it counts."""
    test_kuairand.write(tmp_path / "data", test_kuairand.made_up(n=160))
    monkeypatch.setenv("MINUTEHAND_DATA", str(tmp_path / "data"))
    plan_of.cache_clear()
    source, store = load("kuairand?days=3&live_days=2"), Features(tmp_path / "features", "kuairand?days=3&live_days=2")
    names, window_ms = [f.name for f in source.declaration.features], source.declaration.window_ms
    differing, live = [], list(source.live())
    actions = sorted((at_ms, e.impression_id, task) for e in live for task, at_ms in e.outcomes.items())
    with Counts(store) as counts:
        begin(store, counts, Judge(store.plan.slots, window_ms, 1000), source.history())
        counts.restore(judge := Judge(store.plan.slots, window_ms, 1000))
        for e in live:
            while actions and actions[0][0] < e.ts_ms:
                at_ms, impression_id, task = actions.pop(0)
                judge.action(impression_id, task, at_ms)
            judge.clock("impressions", 0, e.ts_ms - 1, 1)
            counts.commit(judge, {})
            asked = e.user_id, [e.item_id], [e.ts_ms], [e.features]
            (row,), _ = store.read(*asked)
            differing += [(e.impression_id, name) for name in names if row[name] != e.features[name]]
            judge.shown(e.impression_id, e.user_id, e.item_id, e.ts_ms, e.features)
        assert [row] == through_feast.read(store, *asked)
    assert len(live) > 40 and not differing
    plan_of.cache_clear()
