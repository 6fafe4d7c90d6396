"""The feature store as docker-compose.yml has it: registry in PostgreSQL, Redis online; only where they are differs."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from redis import Redis as Client

from features.attributes import Attributes
from features.online import Online
from features.store import Features
from streaming.publisher import item
from streaming.source import load
from streaming.topics import ITEMS
from tests.features.test_store import SHOP, START_MS, counting, price, priced
from tests.support import PROJECT, through_feast
from tests.support.servers import Postgres, Redis


@pytest.fixture
def shop(tmp_path: Path, postgres: Postgres, redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> Features:
    Client(port=redis_server.port).flushall()
    given = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]["features"]["environment"]
    file, online, registry = (given[n] for n in ("FEAST_FS_YAML_FILE_PATH", "MINUTEHAND_REDIS", "MINUTEHAND_REGISTRY"))
    here = postgres.database("feast").partition("://")[2]
    registry = re.sub(r"minutehand:\$\{POSTGRES_PASSWORD:[^}]*\}@postgres:5432/feast$", lambda _: here, registry)
    assert registry == f"postgresql+psycopg2://{here}"
    monkeypatch.setenv("MINUTEHAND_REGISTRY", registry)
    monkeypatch.setenv("MINUTEHAND_REDIS", online.replace("redis:6379", f"127.0.0.1:{redis_server.port}"))
    monkeypatch.setenv("MINUTEHAND_PROFILES", f"redis://127.0.0.1:{redis_server.port}/0")
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", str(PROJECT / Path(file).relative_to("/opt/minutehand")))
    return Features(tmp_path / "features", SHOP)


def test_registry_in_postgresql_and_redis_online(shop: Features, postgres: Postgres, redis_server: Redis) -> None:
    views = {name for (name,) in postgres.ask("feast", "SELECT feature_view_name FROM feature_views")}
    assert views == {"profile", "video", "activity", "counters"}
    for view, table in (("profile", load(SHOP).views.users()), ("video", load(SHOP).views.items())):
        shop.write({view: table.to_pydict()})
    again = Features(shop.folder, SHOP)  # another process' view of the same

    # Written, and read by a store that did not write it; an older event changes nothing, of whichever second.
    reads = []
    for k, (at_ms, n) in enumerate(((5000, 7), (5002, 8), (5001, 1), (4000, 2), (9000, 9))):
        shop.write({"video": priced(2, START_MS + at_ms, n)})
        with counting(shop) as (judge, commit):
            judge.shown(f"i{k}", 4, 2, START_MS + k, {})
            commit()
        asked = 4, [2, 3], [START_MS + 9000] * 2, [{"search": [n], "page": n}] * 2
        rows, read_ms = again.read(*asked)
        assert rows == through_feast.read(again, *asked)
        reads.append((read_ms, price(again, 2), rows[0]))
    assert [n for _, n, _ in reads] == [7, 8, 8, 8, 9]
    assert [row["item_seen"] for *_, row in reads] == [1, 2, 3, 4, 5]
    assert reads[0][2]["city"] == 1 and reads[0][2]["brands"] == [2]

    # A reader of another machine needs Redis only.
    elsewhere = Online(shop.folder.parent / "elsewhere", SHOP, f"127.0.0.1:{redis_server.port}")
    counted = elsewhere.counted("counters", ["item_shown_all", "item_shown_1h"], [2, 3])
    assert counted == {"item_shown_all": [5, 0], "item_shown_1h": [5, 0]}
    assert elsewhere.popular("1h") == [2] and elsewhere.now_ms() == START_MS + 4
    assert not (shop.folder.parent / "elsewhere" / "profiles.sqlite").exists()

    # The past, row for row; what Redis holds stays in it.
    again.repair(0)
    asked = pa.table(
        {
            "user_id": [4] * len(reads),
            "item_id": [2] * len(reads),
            "ts_ms": [START_MS + 9000] * len(reads),
            "read_ms": [read_ms for read_ms, *_ in reads],
            "feature_search": [row["search"] for *_, row in reads],
            "feature_page": [row["page"] for *_, row in reads],
        }
    )
    assert again.historical(asked).to_pylist() == [row for *_, row in reads]

    # Attributes by messages: one that comes late, and a correction of the same time.
    attributes = Attributes(shop)
    for at_ms, values in ((9005, {"brands": [7]}), (9004, {"price": 9.5}), (9005, {"brands": [8]})):
        attributes.take(ITEMS, item(2, START_MS + at_ms, values))
        assert attributes.push() == {"video": 1}
    names = ["video:brands", "video:price"]
    online = again.feast.get_online_features(features=names, entity_rows=[{"product": 2}]).to_dict()
    assert (online["brands"], online["price"]) == ([[8]], [9.5])

    # A Redis and a registry that lost everything are filled again.
    Client(port=redis_server.port).flushall()
    postgres.ask("feast", "SET statement_timeout = '60s'; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    again = Features(shop.folder, SHOP)
    assert price(again, 2) is None
    assert again.materialize(0, START_MS + 10_000)["video"] > 1
    assert price(again, 2) == 9.5
