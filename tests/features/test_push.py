"""The feature push as a process, under kill -9, beside an app that reads from the store and logs what it read."""

from __future__ import annotations

import heapq
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from kafka import KafkaProducer

from features import adds, offline
from features.attributes import Attributes
from features.batch_views import refresh
from features.online import ARRIVED
from features.profile.database import FILE
from features.profile.judge import Judge
from features.profile.transaction import Transaction
from features.push import Counts
from features.reproduction import reproduce
from features.rows import SqliteRows
from features.store import Features, now_ms
from infra.tail import Tail
from streaming import topics
from streaming.archive.rows import Decoder
from streaming.publisher import Publisher, action, forget, impression, item, user
from streaming.source import Exposure, load
from tests.support import PROJECT
from tests.support.broker import Broker
from tests.support.metrics import get, metric
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.replay import DISORDER_MS, EVENT_TIME, FLAGS, LEASE
from tests.support.wait import until

SHOP = PROJECT / "tests/support/shop_views.py"
SOURCE = load(str(SHOP))
DECLARATION = SOURCE.declaration
WAIT_S = 120


class Pusher:
    """`python -m features.push` on one folder."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.port, self.broker, self.folder = free_port(), broker, folder
        self.log = folder.parent / "push.log"

    def start(self) -> None:
        where = ("--source", str(SHOP), "--kafka", self.broker.bootstrap, "--to", str(self.folder))
        pace = ("--port", str(self.port), "--push-ms", "50")
        self.process = Process(self.log, "features.push", *where, *FLAGS, *pace)
        self.until(lambda: get(self.port, "/healthz")[0], "it answers")

    def metric(self, name: str) -> float:
        return metric(self.port, f"minutehand_features_{name}")

    def until(self, holds: Callable[[], object], what: str) -> None:
        until(holds, what, process=self.process)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as started:
        topics.create(started.bootstrap)
        yield started


def serve(
    exposures: list[Exposure], store: Features, publisher: Publisher, waiting: list[tuple[int, str, str]]
) -> list[dict[str, Any]]:
    """The app: reads features, logs them with the impression, sends outcomes in their time. -> the impressions."""
    sent = []
    for e in exposures:
        while waiting and waiting[0][0] <= e.ts_ms:
            at_ms, impression_id, task = heapq.heappop(waiting)
            publisher.send(topics.ACTIONS, action(impression_id, task, at_ms))
        (row,), read_ms = store.read(e.user_id, [e.item_id], [e.ts_ms], [e.features])
        event = impression(e.impression_id, "r", e.user_id, e.item_id, e.ts_ms, 0, row, {}, read_ms=read_ms)
        assert publisher.send(topics.IMPRESSIONS, event)
        sent.append(event)
        for task, at_ms in e.outcomes.items():
            heapq.heappush(waiting, (at_ms, e.impression_id, task))
        publisher.heartbeat(e.ts_ms - 1)
    return sent


def archived(events: list[dict[str, Any]]) -> pa.Table:
    """The impressions as the archive keeps them."""
    lines = [SimpleNamespace(value=json.dumps(e).encode(), offset=k, timestamp=0) for k, e in enumerate(events)]
    return Decoder(DECLARATION, EVENT_TIME).rows(topics.IMPRESSIONS, 0, lines).table


def by_sql(exposures: list[Exposure], now_ms: int) -> dict[int, tuple[int, ...]]:
    """item -> shown and bought, so far and in each window, whose begin is at a minute, an hour or a day."""
    done = [(e, e.outcomes["buy"]) for e in exposures if "buy" in e.outcomes]
    kept = [(e.item_id, at) for e, at in done if at <= e.ts_ms + DECLARATION.window_ms]
    log = pa.table(
        {
            "item": [e.item_id for e in exposures] + [item for item, _ in kept],
            "moment": [e.ts_ms for e in exposures] + [at for _, at in kept],
            "bought": [0] * len(exposures) + [1] * len(kept),
        }
    )
    minute, day = 60_000, 86_400_000
    edges = ((60 * minute, minute), (day, 60 * minute), (7 * day, day), (now_ms, 1))
    sums = ", ".join(
        f"count(*) FILTER (bought = {what} AND moment >= ({now_ms} - {length}) // {hop} * {hop})"
        for length, hop in edges
        for what in (0, 1)
    )
    with duckdb.connect() as connection:
        connection.register("log", log)
        rows = connection.execute(f"SELECT item, {sums} FROM log GROUP BY item").fetchall()
    return {item: tuple(counts) for item, *counts in rows}


COUNTS = [f"item_{action}_{window}" for window in ("1h", "1d", "7d", "all") for action in ("shown", "buy")]


def test_each_event_once_through_kill_9_and_the_offline_join_says_what_was_served(
    broker: Broker, tmp_path: Path
) -> None:
    pusher, folder = Pusher(broker, tmp_path / "features"), tmp_path / "features"
    history, live = list(SOURCE.history()), list(SOURCE.live())
    pusher.start()
    store, waiting, sent = Features(folder, str(SHOP)), [], []
    with Publisher(broker.bootstrap, DECLARATION, lease=LEASE) as publisher:
        for third in (live[:100], live[100:200], live[200:]):
            sent += serve(third[:40], store, publisher, waiting)
            pusher.until(lambda at=third[39].ts_ms: pusher.metric("event_ms") >= at, "what was served is pushed")
            # Killed twice: anywhere between reading, pushing and committing. The app goes on meanwhile.
            sent += serve(third[40:80], store, publisher, waiting)
            if third[-1] != live[-1]:
                pusher.process.kill()
            sent += serve(third[80:], store, publisher, waiting)
            if third[-1] != live[-1]:
                pusher.start()
        for at_ms, impression_id, task in sorted(waiting):
            publisher.send(topics.ACTIONS, action(impression_id, task, at_ms))
        end_ms = live[-1].ts_ms + 2 * DECLARATION.window_ms
        publisher.heartbeat(end_ms)
    pusher.until(lambda: pusher.metric("event_ms") == end_ms and pusher.metric("lag_records") == 0, "all is pushed")
    assert pusher.process.end() == 0, pusher.process.tail()

    # The counters: SQL over the send log, window for window, through Feast's own online read.
    expected = by_sql([*history, *live], end_ms)
    asked = {"features": [f"counters:{name}" for name in COUNTS], "entity_rows": [{"product": k} for k in expected]}
    online = store.feast.get_online_features(**asked).to_dict()
    assert dict(zip(expected, zip(*(online[name] for name in COUNTS), strict=True), strict=True)) == expected

    # And the same in the ranker's read.
    rows, _ = store.read(1, list(expected), [end_ms] * len(expected), [{}] * len(expected))
    assert [row["item_seen"] for row in rows] == [float(counts[-2]) for counts in expected.values()]

    # What was served is what the offline join says was readable then.
    found = reproduce(store, archived(sent))
    assert found["impressions"] == len(sent) and found["share"] == 1, found
    served = {row["features"]["item_seen"] for row in sent}
    assert len(served) > 10, "the served counts moved while it ran"

    # A second pusher of the same folder is told so, while the first one runs.
    pusher.start()
    command = [sys.executable, "-m", "features.push", "--source", str(SHOP)]
    second = subprocess.run(
        [*command, "--kafka", broker.bootstrap, "--to", str(folder)],
        capture_output=True, text=True, timeout=WAIT_S, cwd=PROJECT,
    )  # fmt: skip
    pusher.process.kill()
    assert second.returncode == 2 and "one process writes the profiles" in second.stderr


def test_attributes_are_in_the_store_within_a_push_through_kill_9(broker: Broker, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    pusher, before_ms, asked = Pusher(broker, folder), now_ms(), []
    pusher.start()
    store = Features(folder, str(SHOP))

    def read(user_id: int, item_id: int) -> dict[str, Any]:
        (row,), read_ms = store.read(user_id, [item_id], [before_ms], [{}])
        asked.append(impression("i", "r", user_id, item_id, before_ms, 0, row, {}, read_ms=read_ms))
        return row

    def brands(*expected: list[int]) -> bool:
        return [read(7000, 9000 + k)["brands"] for k in range(len(expected))] == list(expected)

    assert brands([], []) and read(7000, 9000)["city"] == -1
    with Publisher(broker.bootstrap, DECLARATION, views=SOURCE.views) as publisher:
        # A new item and a new user.
        assert publisher.send(topics.ITEMS, item(9000, before_ms, {"brands": [1, 2]}))
        assert publisher.send(topics.USERS, user(7000, before_ms, {"city": 5}))
        assert not publisher.send(topics.ITEMS, item(9000, before_ms, {"colour": 1}))
        publisher.flush()
        pusher.until(lambda: brands([1, 2], []) and read(7000, 9000)["city"] == 5, "the new item's brands are there")

        # Killed at any moment, with messages in an order that is not that of their times.
        for k in range(1, 40):
            assert publisher.send(topics.ITEMS, item(9000, before_ms + k, {"brands": [k]}))
            assert publisher.send(topics.ITEMS, item(9001, before_ms + 40 - k, {"brands": [40 - k]}))
            assert publisher.send(topics.ITEMS, item(9001, before_ms - k, {"price": float(40 - k)}))
            if k in (10, 20):
                pusher.until(lambda k=k: read(7000, 9000)["brands"] >= [k - 5], "it is pushed")  # type: ignore[misc]
                pusher.process.kill()
            if k in (15, 25):
                pusher.start()
            publisher.flush()
        pusher.until(lambda: brands([39], [39]) and pusher.metric("lag_records") == 0, "the newest of each")

        # What another producer sends without a judgement; it stops nothing.
        raw = KafkaProducer(bootstrap_servers=broker.bootstrap)
        bad = [b"{broken", b"", b'{"item_id":9001,"ts_ms":%d,"attributes":{"brands":[8]}}' % (now_ms() + 3_600_000)]
        for message in bad:
            raw.send(topics.ITEMS, message)
        raw.close()
        assert publisher.send(topics.ITEMS, item(9000, before_ms + 50, {"brands": [50]}))
        publisher.flush()
        pusher.until(lambda: brands([50], [39]), "the message behind")
    assert pusher.process.end() == 0, pusher.process.tail()
    with Tail(broker.bootstrap, [topics.DEAD[topics.ITEMS]]) as dead:
        kinds = sorted(json.loads(record.value)["kind"] for _, record in dead.read())
    assert kinds == ["attribute", "future", "json", "json"]

    def rows() -> dict[int, Any]:
        return {row["product"]: (row["brands"], row["price"]) for row in store.offline.newest("video").to_pylist()}

    # A user is forgotten, through a kill.
    with Publisher(broker.bootstrap, DECLARATION, views=SOURCE.views) as publisher:
        assert read(7000, 9000)["city"] == 5
        assert publisher.send(topics.USERS, forget(7000, before_ms))
        publisher.flush()
        pusher.start()
        pusher.until(lambda: read(7000, 9000)["city"] == -1, "the user is forgotten")
        pusher.process.kill()
    expected = rows()
    assert expected[9000] == ([50], None) and expected[9001] == ([39], 39.0)
    assert reproduce(store, archived(asked))["share"] == 1

    # Positions without these topics: they are read from their oldest record on, and change nothing.
    def positions() -> dict[str, Any]:
        with closing(sqlite3.connect(folder / FILE)) as db:
            return json.loads(db.execute("SELECT data FROM notes WHERE name = 'positions'").fetchone()[0])

    left = positions()
    for topic in (topics.ITEMS, topics.USERS):
        assert sum(left.pop(topic)["offsets"].values()) > 0
    with closing(sqlite3.connect(folder / FILE)) as db, db:
        db.execute("UPDATE notes SET data = ? WHERE name = 'positions'", (json.dumps(left).encode(),))
    files = {view: len(list((folder / "offline" / view).glob("*.parquet"))) for view in ("profile", "video")}
    pusher.start()
    pusher.until(lambda: "items" in positions(), "it has read them")
    assert pusher.process.end() == 0, pusher.process.tail()
    assert rows() == expected
    assert {view: len(list((folder / "offline" / view).glob("*.parquet"))) for view in files} == files


class Served:
    """An app in process: counts impressions, and reads and logs features."""

    def __init__(self, folder: Path) -> None:
        self.store, self.sent = Features(folder, str(SHOP)), []
        self.judge = self._judge()
        self.times = [e.ts_ms for e in SOURCE.live()]

    def _judge(self) -> Judge:
        return Judge(self.store.plan.slots, DECLARATION.window_ms, DISORDER_MS)

    def shown(self, k: int, user: int, item: int) -> None:
        """Counts the k-th impression, in a commit of its own."""
        with Counts(self.store) as counts:
            self.judge.shown(f"i{k}", user, item, self.times[k], {})
            counts.commit(self.judge, {})

    def asked(self, k: int, user: int, item: int) -> dict[str, Any]:
        """Reads features at the time of the k-th impression."""
        (row,), read_ms = self.store.read(user, [item], [self.times[k]], [{}])
        self.sent.append(impression(f"i{k}", "r", user, item, self.times[k], 0, row, {}, read_ms=read_ms))
        return row

    def restart(self) -> None:
        self.judge = self._judge()
        with Counts(self.store) as counts:
            counts.restore(self.judge)


def test_a_commit_that_died_before_it_was_readable_never_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its adds are logged, and its process is killed before the transaction ends."""
    app = Served(tmp_path)
    for k in range(4):
        app.shown(k, 1, 1 + k % 2)
        app.asked(k, 1, 1 + k % 2)
    log = adds.AddLog(tmp_path, app.store.plan.slots)
    monkeypatch.setattr(adds, "COMPACT_FILES", 1)
    log.compact()
    assert len(list((tmp_path / "adds").glob("*.parquet"))) == 1 and len(log.commits()[0]) == 4

    def dying(transaction: Transaction, name: str, data: bytes) -> None:
        if name == ARRIVED:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Transaction, "note", dying)
        app.shown(4, 1, 1)
    assert len(log.commits()[0]) == 5
    assert app.asked(5, 1, 1)["item_seen"] == 2
    found = reproduce(app.store, archived(app.sent))
    assert found["why"] == {"unfinished": 2} and found["missed"] == {"item_seen": 1, "user_seen": 1}

    app.restart()
    assert len(log.commits()[0]) == 4
    app.shown(4, 1, 1)
    assert app.asked(5, 1, 1)["item_seen"] == 3
    assert reproduce(app.store, archived(app.sent))["share"] == 1


def test_a_forgotten_user_is_gone_from_counts_attributes_and_logs_for_ever(tmp_path: Path) -> None:
    app = Served(tmp_path)
    store, at_ms, attributes = app.store, app.times[9], Attributes(app.store)
    early, late = user(1, app.times[5], {"city": 9}), user(1, at_ms + 1, {"city": 8})

    def take(*events: dict[str, Any]) -> None:
        for event in events:
            attributes.take(topics.USERS, event)
        attributes.push()

    def of_user(user_id: int) -> tuple[int, float, float]:
        row = app.asked(9, user_id, 2)
        return row["city"], row["user_seen"], row["item_seen"]

    refresh(store)
    for k in range(4):
        app.shown(k, 1 + k % 2, 2)
    take(early)
    assert [of_user(1), of_user(2)] == [(9, 2, 4), (2, 2, 4)]
    take(forget(1, at_ms))
    with Counts(store) as counts:
        counts.commit(app.judge, {}, [(1, at_ms)])
        counts.compact(app.judge)
    with Counts(store) as counts:  # it was killed while the log had five files to go through
        while counts.forgetting:
            counts.compact(app.judge)
    assert [of_user(1), of_user(2)] == [(-1, 0, 4), (2, 2, 4)]
    logged = pq.read_table(tmp_path / "adds")
    assert set(zip(*logged.select(["slot", "profile"]).to_pydict().values(), strict=True)) >= {(0, 2), (1, 2), (0, 0)}
    assert (
        not pc.any(pc.equal(logged["profile"], 1)).as_py()
        and len(adds.AddLog(tmp_path, app.store.plan.slots).commits()[0]) == 5
    )
    rows = pq.read_table(tmp_path / "offline/profile").filter(pc.field("shopper") == 1).to_pylist()
    assert [row["city"] for row in rows] == [None]

    # The same events and messages again, in any order, and the table of the source, do not bring the user back.
    app.judge = Judge(store.plan.slots, DECLARATION.window_ms, DISORDER_MS)
    for k in range(4):
        app.shown(k, 1 + k % 2, 2)
    take(early, forget(1, at_ms - 5), early)
    assert refresh(store) == {}
    assert of_user(1) == (-1, 0, 8)
    assert not pc.any(pc.equal(pq.read_table(tmp_path / "adds")["profile"], 1)).as_py()
    # What the user does later counts. The check of logged features leaves out what was forgotten.
    app.shown(10, 1, 2)
    take(late, forget(1, at_ms))
    assert of_user(1) == (8, 1, 9)
    found = reproduce(store, archived(app.sent))
    assert (found["impressions"], found["forgotten"], found["share"]) == (2, 4, 1)


def test_attributes_that_died_before_they_were_readable_never_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two views one is readable already. Older rows, merged into the same file, stay."""
    app, write = Served(tmp_path), SqliteRows.write
    store, keys = app.store, {"profile": "shopper", "video": "product"}

    def rows(k: int) -> dict[str, dict[str, list[Any]]]:
        values = {"profile": {"city": [k]}, "video": {"brands": [[k]], "price": [1.0]}}
        return {view: {keys[view]: [1], "ts_ms": [app.times[k]], **values[view]} for view in keys}

    for k in range(3):
        store.write(rows(k))
        assert app.asked(k, 1, 1)["city"] == k
    monkeypatch.setattr(offline, "COMPACT_FILES", 1)
    store.offline.compact()
    store.repair(0)  # all of it stands
    assert {view: len(store.offline.arrivals(view)[1]) for view in keys} == {"profile": 3, "video": 3}

    def dying(self: SqliteRows, view: str, some: Any) -> None:
        if view == "video":
            raise KeyboardInterrupt
        write(self, view, some)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SqliteRows, "write", dying)
        store.write(rows(3))
    assert app.asked(4, 2, 1)["brands"] == [2] and app.asked(4, 1, 2)["city"] == 3
    assert reproduce(store, archived(app.sent))["missed"] == {"brands": 1, "city_brands": 1}
    assert reproduce(store, archived(app.sent))["why"] == {"unfinished": 2}
    last = max(int(part.stem.split("-")[0]) for part in (store.folder / "offline/video").glob("*.parquet"))
    Features(store.folder, str(SHOP)).repair(last)  # committed since: the online store lost it
    assert {view: len(store.offline.arrivals(view)[1]) for view in keys} == {"profile": 4, "video": 4}
    Features(store.folder, str(SHOP)).repair(last - 1)
    assert {view: len(store.offline.arrivals(view)[1]) for view in keys} == {"profile": 4, "video": 3}


def test_a_miss_is_explained_by_the_version_that_was_served(tmp_path: Path) -> None:
    app = Served(tmp_path)
    for k in range(12):
        app.shown(k, 1, 1)
        assert app.asked(k, 1, 1)["item_seen"] == k + 1
    sent = app.sent
    assert reproduce(app.store, archived(sent))["share"] == 1
    sent[5]["features"]["item_seen"] = 5.0  # as if the sixth commit had been logged and not been readable yet
    sent[7]["features"]["item_seen"] = 99.0
    found = reproduce(app.store, archived(sent))
    assert found["why"] == {"unfinished": 1, "unexplained": 1}
    assert found["share"] == 1 - 2 / found["values"]
