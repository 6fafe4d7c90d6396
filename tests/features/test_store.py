"""The feature store on real Feast, SQLite and DuckDB: definitions, reads, writes in any order, TTL, the past."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.counters import Counters
from features.plan import COUNTERS, plan_of
from features.push import begin
from features.store import REPO, Features, main, now_ms
from streaming.source import load
from tests.streaming.sources import test_kuairand
from tests.support import PROJECT

SHOP = str(PROJECT / "tests/support/shop_views.py")
START_MS = 1_700_000_000_000
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """The shop's batch views; the tests count what they need, each of products of its own."""
    store = Features(tmp_path_factory.mktemp("features"), SHOP)
    for view, table in (("profile", load(SHOP).views.users()), ("video", load(SHOP).views.items())):
        store.write({view: table.to_pydict()})
    return store


def counted(product: int, at_ms: int, shown: int) -> dict[str, list[Any]]:
    return {"product": [product], **{c.name: [shown] for c in COUNTERS}, "item_event_ms": [at_ms]}


def seen(store: Features, product: int, at_ms: int) -> float:
    (row,), _ = store.read(1, [product], [at_ms], [{}])
    return float(row["item_seen"])


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
    other = Features(shop.folder, SHOP)  # a second pusher
    shop.write({"counters": counted(3, at_ms, 7)})
    other.write({"counters": counted(3, at_ms - 1, 4)})  # of the same second, which is all that SQLite keeps of a time
    assert seen(shop, 3, at_ms) == seen(other, 3, at_ms) == 7
    newer, older = counted(3, at_ms + 9, 9), counted(3, at_ms + 8, 8)
    both = {name: [*newer[name], *older[name]] for name in newer}
    other.write({"counters": both})  # within one write, the older one last
    assert seen(shop, 3, at_ms) == 9
    # Through Feast's own push, and by a store that was opened later.
    frame = pd.DataFrame(counted(3, at_ms, 1))
    frame["event_timestamp"] = frame["arrived"] = pd.to_datetime([at_ms], unit="ms", utc=True)
    shop.feast.push("counters_push", frame)
    again = Features(shop.folder, SHOP)
    again.write({"counters": counted(3, at_ms + 2, 2)})
    assert seen(again, 3, at_ms) == 9
    again.write({"counters": counted(3, at_ms + 10, 10)})
    assert seen(shop, 3, at_ms) == 10


def test_materialize_fills_an_empty_online_store_and_never_goes_back(
    shop: Features, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for k in range(1, 4):
        shop.write({"counters": counted(5, START_MS + k * 1000, k)})
    assert shop.materialize(START_MS, START_MS + 2500)["counters"] >= 1
    assert seen(shop, 5, START_MS + 9000) == 3
    for file in shop.folder.glob("online.db*"):
        file.rename(tmp_path / file.name)
    fresh = Features(shop.folder, SHOP)
    fresh.feast.refresh_registry()
    (shop.folder / "applied.json").unlink()
    words = ["materialize", "--source", SHOP, "--folder", str(shop.folder), "--begin", str(START_MS)]
    assert main([*words, "--end", str(START_MS + 2500)]) == 0
    assert '"counters": ' in capsys.readouterr().out
    assert seen(Features(shop.folder, SHOP), 5, START_MS + 9000) == 2
    for file in tmp_path.glob("online.db*"):
        file.rename(shop.folder / file.name)


def test_a_row_past_its_time_to_live_counts_as_none_online_and_offline(shop: Features) -> None:
    shop.write({"counters": counted(6, START_MS, 5)})
    for at_ms, expected in ((START_MS + DAY_MS, 5.0), (START_MS + DAY_MS + 1, 0.0)):
        assert seen(shop, 6, at_ms) == expected
        asked = pa.table({"user_id": [1], "item_id": [6], "ts_ms": [at_ms], "read_ms": [now_ms() + 1000]})
        assert shop.historical(asked)["item_seen"].to_pylist() == [expected]


def test_the_past_is_as_it_was_readable_row_for_row(shop: Features) -> None:
    """Rows come back in their order and none is dropped: of unknown keys, of times before anything, and repeated."""
    reads = []
    for k in range(5):
        shop.write({"counters": counted(7, START_MS + 100 * k, k)})
        (row,), read_ms = shop.read(2, [7], [START_MS + 600], [{"search": [k], "page": k}])
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
    before = shop.offline.newest("counters"), shop.offline.arrivals("counters")
    monkeypatch.setattr("features.offline.COMPACT_FILES", 2)
    shop.offline.compact()
    assert len(list((shop.folder / "offline" / "counters").glob("*.parquet"))) == 1
    assert shop.offline.newest("counters").equals(before[0])
    assert {k: v.tolist() for k, v in shop.offline.arrivals("counters").items()} == {
        k: v.tolist() for k, v in before[1].items()
    }


def test_a_broken_file_stops_neither_repair_nor_the_past(shop: Features) -> None:
    folder = shop.folder / "offline" / "counters"
    asked = pa.table({"user_id": [1], "item_id": [8], "ts_ms": [START_MS + 9], "read_ms": [now_ms() + 60_000]})
    for use in (lambda: shop.repair(0), lambda: shop.historical(asked)):
        arrived_ms = shop.write({"counters": counted(8, START_MS, 5)})
        (folder / f"{arrived_ms}.parquet").write_bytes(b"PAR1")
        use()
        assert (folder / f"{arrived_ms}.parquet.broken").exists()


def test_kuairands_features_from_the_store_are_those_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On made-up files: what the views hold and what is derived equal the source's own at the start."""
    test_kuairand.write(tmp_path / "data", test_kuairand.made_up(n=400))
    monkeypatch.setenv("MINUTEHAND_DATA", str(tmp_path / "data"))
    plan_of.cache_clear()
    source = load("kuairand")
    store = Features(tmp_path / "features", "kuairand")
    declaration = source.declaration
    begin(store, source, Counters(declaration.judged, declaration.window_ms, 1000))
    fixed = {"user", "video", "author", "music", "tags", "profile", "tab", "upload_type", "hour", "age"}
    shown = list(source.live())
    history = list(source.history())
    for e in shown[:20]:
        (row,), _ = store.read(e.user_id, [e.item_id], [e.ts_ms], [e.features])
        assert {name: row[name] for name in fixed} == {name: e.features[name] for name in fixed}
        of_user = sum(h.user_id == e.user_id for h in history)
        assert row["user_shown"] == pytest.approx(np.log1p(of_user) / 2 - 1, abs=1e-4)
    plan_of.cache_clear()
