"""Profiles in Redis: equal to the store's, through kills and losses of either side."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redis import Redis as Client

from common.errors import InputError
from features.profile import outbox, replica
from features.profile.query import Query
from features.profile.replica import RedisProfiles, Replica
from features.profile.store import Profiles
from streaming.slots import DAY_MS, HOUR_MS, MINUTE_MS, Slot, Slots
from tests.support.profile_oracle import DECLARED, Event, adds, answered, drawn
from tests.support.servers import Redis

NOW_MS = 1_790_000_000_000 // DAY_MS * DAY_MS
QUERIES = {
    "user": [
        *(Query("user_author", window, by="click", k=5) for window in ("1h", "1d", "7d")),
        Query("user_author", "1d", half_life_ms=HOUR_MS), Query("user_item", "all"),
        Query("user_item", "7d", by="time", action="like", k=3),
    ],
    "item": [Query("item", window) for window in ("1h", "1d", "7d", "all")],
}  # fmt: skip


@pytest.fixture
def address(redis_server: Redis) -> Iterator[str]:
    with Client(port=redis_server.port) as client:
        client.flushall()
    yield f"redis://127.0.0.1:{redis_server.port}/0"


def opened(folder: Path) -> Profiles:
    return Profiles(folder, DECLARED, writes=True, outbox=True)


def commit(store: Profiles, events: list[Event], now_ms: int = NOW_MS) -> None:
    with store.writing() as transaction:
        transaction.add(adds(events))
        transaction.note("now", b"%d" % now_ms)


def equal(store: Profiles, reader: RedisProfiles, now_ms: int) -> bool:
    for entity, queries in QUERIES.items():
        ids = [3, *range(12), 2**62, 3]
        pairs = zip(store.read(entity, ids, queries, now_ms), reader.read(entity, ids, queries, now_ms), strict=True)
        if any(answered(a, k) != answered(b, k) for a, b in pairs for k in range(len(ids))):
            return False
    return True


def test_redis_equals_the_store_and_an_idle_hour_empties(tmp_path: Path, address: str) -> None:
    rng, reader = np.random.default_rng(5), RedisProfiles(address, DECLARED)
    with pytest.raises(InputError, match=r"redis://127.0.0.1:\d+/0 holds no profiles yet: the feature push writes"):
        reader.read("user", [1], QUERIES["user"], NOW_MS)
    with opened(tmp_path) as store:
        copy, now_ms = Replica(address, store, DECLARED, ("now",)), NOW_MS
        for step in range(25):
            now_ms += int(rng.choice([1000, MINUTE_MS, 5 * HOUR_MS, 2 * DAY_MS]))
            commit(store, drawn(rng, 40, now_ms - 3 * DAY_MS, now_ms, 10, 8), now_ms)
            if step % 6 == 2:
                store.compact(now_ms)
            if step % 9 == 4:
                with store.writing() as transaction:
                    transaction.forget("user", step % 10, now_ms - HOUR_MS)
            assert copy.publish() and reader.noted("now") == b"%d" % now_ms
            assert equal(store, reader, now_ms)
        for idle_ms in (61 * MINUTE_MS, 26 * HOUR_MS, 9 * DAY_MS):
            assert equal(store, reader, now_ms + idle_ms)
        with pytest.raises(InputError, match=r"redis://127.0.0.1:\d+/0: now_ms is 5; allowed is \d+ or later"):
            reader.read("user", [1], QUERIES["user"], 5)
    reader.close()


def test_only_what_has_changed_is_written_and_an_older_version_changes_nothing(tmp_path: Path, address: str) -> None:
    client = Client.from_url(address)
    with opened(tmp_path) as store:
        copy = Replica(address, store, DECLARED, ())
        commit(store, [Event(0, profile, 1, NOW_MS, 0, 1) for profile in range(50)])
        assert copy.publish()
        before = {key: client.get(key) for key in client.keys("*:user:*")}
        commit(store, [Event(0, 7, 1, NOW_MS, 0, 1)])
        assert copy.publish() and len(before) == 50
        changed = [key for key, value in before.items() if client.get(key) != value]
        assert changed == [b"minutehand:profiles:user:7"]
        # What a killed push had sent arrives behind its successor's.
        client.eval(replica.NEWEST, 1, changed[0], before[changed[0]], 0)
        (answer,) = RedisProfiles(address, DECLARED).read("user", [7], [Query("user_author", "1h")], NOW_MS)
        assert answer.counts[0, 0] == 2
        assert client.ttl("minutehand:profiles:user:7") == -1, "user_item has the window `all`"
    client.close()
    finite = Slots((Slot("item", "item", keep_ms=9 * DAY_MS),), DECLARED.actions)
    assert replica.kept_ms(finite, "item") == 10 * DAY_MS


def test_redis_is_away_empty_or_old(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "RETRY_S", 0.0)
    monkeypatch.setattr(replica, "MOST", 3)
    monkeypatch.setattr(outbox, "AT_ONCE", 2)
    client, reader = Client.from_url(address), RedisProfiles(address, DECLARED)
    with opened(tmp_path) as store:
        away = Replica("redis://:secret@127.0.0.1:1/0", store, DECLARED, ("now",))
        for profile in range(8):
            commit(store, [Event(0, profile, 1, NOW_MS, 0, 1), Event(1, profile, 0, NOW_MS, 0, 1)])
            assert not away.publish(), "the push goes on"
    with opened(tmp_path) as store:  # killed meanwhile
        copy, calls = Replica(address, store, DECLARED, ("now",)), 1
        while not copy.publish():
            calls += 1
            with pytest.raises(InputError, match="holds no profiles yet"):
                reader.read("user", [1], QUERIES["user"], NOW_MS)
        assert calls > 3 and equal(store, reader, NOW_MS)
        old = {key: client.dump(key) for key in client.keys()}
        for lost in (True, False):
            commit(store, [Event(0, 1, 1, NOW_MS, 0, 1)])
            while not copy.publish():
                pass
            commit(store, [Event(0, 2, 1, NOW_MS, 0, 1)])
            client.flushall()
            for key, value in old.items() if not lost else ():
                client.restore(key, 0, value)
            while not copy.publish():
                pass
            assert equal(store, reader, NOW_MS), "all is written again"
        monkeypatch.setattr(replica, "MOST_VERSIONS", 2)
        copy = Replica(address, store, DECLARED, ("now",))
        for profile in range(20):
            commit(store, [Event(0, profile, 1, NOW_MS, 0, 1)])
        while not copy.publish():
            pass
        assert equal(store, reader, NOW_MS)
    with pytest.raises(ConnectionError, match=r"^redis://127.0.0.1:1/0 fails: .*") as e:
        RedisProfiles("redis://:secret@127.0.0.1:1/0", DECLARED).read("user", [1], QUERIES["user"], NOW_MS)
    assert "secret" not in str(e.value)
    client.close()


def test_commits_without_redis_reach_it_when_it_is_set_again(tmp_path: Path, address: str) -> None:
    reader = RedisProfiles(address, DECLARED)
    for profile in range(3):
        with opened(tmp_path) as store:
            commit(store, [Event(0, profile, 1, NOW_MS, 0, 1)])
            assert Replica(address, store, DECLARED, ()).publish() and equal(store, reader, NOW_MS)
        with Profiles(tmp_path, DECLARED, writes=True) as store:
            commit(store, [Event(0, profile + 5, 1, NOW_MS, 0, 1)])
            assert not equal(store, reader, NOW_MS)


def test_what_is_refused(tmp_path: Path, address: str) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    with opened(tmp_path / "a") as store, opened(tmp_path / "b") as other:
        commit(store, [Event(0, 7, 1, NOW_MS, 0, 1)])
        assert Replica(address, store, DECLARED, ()).publish()
        with pytest.raises(InputError, match="holds the profiles of another store; allowed is an empty one"):
            Replica(address, other, DECLARED, ()).publish()
    grown = Slots((*DECLARED.slots, Slot("tab", "item", by="tab")), (*DECLARED.actions, "share"))
    (answer,) = RedisProfiles(address, grown).read("user", [7], [Query("user_author", "1h")], NOW_MS)
    assert answer.counts.tolist() == [[1, 0, 0, 0]]
    changed = Slots((Slot("author", "user", by="author"),), DECLARED.actions)
    with pytest.raises(InputError, match="slot user_author: name is 'author', was 'user_author'; allowed are"):
        RedisProfiles(address, changed).read("user", [7], [Query("author", "1h")], NOW_MS)
    with Client.from_url(address) as client:
        client.setrange("minutehand:profiles:user:7", 25, b"x")
    with pytest.raises(InputError, match=r"redis://127.0.0.1:\d+/0: user 7: a blob is corrupt, its checksum differs"):
        RedisProfiles(address, DECLARED).read("user", [7], [Query("user_author", "1h")], NOW_MS)
    with pytest.raises(InputError, match="entity is 'shop'; allowed is user or item"):
        RedisProfiles(address, DECLARED).read("shop", [7], [], NOW_MS)
    with pytest.raises(InputError, match="profiles is no address of Redis; allowed is redis://host:port/number"):
        RedisProfiles("http://x", DECLARED)


WRITER = """
import itertools, sys
from pathlib import Path
from features.profile.replica import Replica
from tests.features.profile.test_replica import DECLARED, NOW_MS, Event, commit, opened

with opened(Path(sys.argv[1])) as store:
    copy = Replica(sys.argv[2], store, DECLARED, ("now",))
    for k in itertools.count(int(store.noted("now") or 0)):
        commit(store, [Event(0, k % 12, k % 5, NOW_MS + k, 0, 1), Event(1, k % 7, 0, NOW_MS + k, 1, 1)], k)
        store.compact(NOW_MS)
        copy.publish()
        print(k, flush=True)
"""


def test_a_writer_that_is_killed_loses_nothing(tmp_path: Path, address: str) -> None:
    reader = RedisProfiles(address, DECLARED)
    for kill in range(2):
        command = [sys.executable, "-c", WRITER, str(tmp_path), address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(3 + 9 * kill):
                assert writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
        with opened(tmp_path) as store:
            assert Replica(address, store, DECLARED, ("now",)).publish()
            assert reader.noted("now") == store.noted("now") and equal(store, reader, NOW_MS)
