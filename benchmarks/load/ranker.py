"""The online read of all features of one user and 100 items: the ranker's, Feast's, and of finished values.

The ranker's read (`Features.read`) and Feast's own are of the same stores, once with attribute rows in SQLite and once
in Redis. `after a commit` is the first read after the push has committed counts and changed a row, so nothing is kept
from the read before. The peers hold the same columns as finished values: in Redis, read by pipelined HMGET (a hash an
entity) and as packed blobs (one MGET), and as packed blobs in SQLite (one SELECT). It starts the redis-server on PATH
on a free port, and ends it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from common.errors import InputError
from features.online import ARRIVED
from features.profile.judge import Judge
from features.profile.store import Profiles
from features.push import Counts, begin
from features.rows import SqliteRows
from features.store import Features
from streaming.event_time import MAX_DISORDER_MS
from streaming.source import load
from tests.support import through_feast
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 100


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    """Starts a Redis server for the block. Yields its port."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise InputError("there is no redis-server on PATH (Debian: apt-get install redis-server)")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        import redis

        client = redis.Redis(port=port)
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def filled(folder: Path, source: str, yaml: Path | None) -> Features:
    """A store with the batch views and the counts of the source's history, compacted."""
    store, loaded = Features(folder, source, yaml), load(source)
    judge = Judge(store.plan.slots, loaded.declaration.window_ms, MAX_DISORDER_MS)
    with Counts(store) as counts:
        begin(store, counts, judge, loaded.history())
        while counts.compact(judge):
            pass
    return store


def finished(store: Features, users: list[int], items: list[int]) -> dict[str, dict[str, Any]]:
    """The values of each entity, of all columns that features need: u:<user> and i:<item> -> column -> value."""
    entities: dict[str, dict[str, Any]] = {}
    for view, columns in store.plan.columns.items():
        names = store.plan.inputs.get(view, [c.name for c in columns])
        of_user = store.plan.key(view) == store.plan.user_key
        keys = users if of_user else items
        for first in range(0, len(keys) if names else 0, 1000):
            some = keys[first : first + 1000]
            asked = [{store.plan.key(view): key} for key in some]
            read = store.feast.get_online_features([f"{view}:{name}" for name in names], asked).to_dict()
            for k, key in enumerate(some):
                entity = entities.setdefault(f"{'u' if of_user else 'i'}:{key}", {})
                entity |= {name: read[name][k] for name in names}
    return entities


def peers(port: int, folder: Path, entities: dict[str, dict[str, Any]]) -> dict[str, Callable[[int, list[int]], Any]]:
    """Readers of finished values."""
    import redis

    client = redis.Redis(port=port, db=1)
    database = sqlite3.connect(folder / "peer.db")
    database.execute("CREATE TABLE blobs (name TEXT PRIMARY KEY, data BLOB) WITHOUT ROWID")
    columns = {name[0]: list(row) for name, row in entities.items()}
    packed = {name: orjson.dumps(list(row.values())) for name, row in entities.items()}
    with client.pipeline(transaction=False) as pipe:
        for name, row in entities.items():
            pipe.hset(f"h:{name}", mapping={column: json.dumps(value) for column, value in row.items()})
            pipe.set(f"b:{name}", packed[name])
        pipe.execute()
    with database:
        database.executemany("INSERT INTO blobs VALUES (?, ?)", packed.items())

    def hashes(user: int, items: list[int]) -> Any:
        with client.pipeline(transaction=False) as pipe:
            pipe.hmget(f"h:u:{user}", columns["u"])
            for item in items:
                pipe.hmget(f"h:i:{item}", columns["i"])
            return [[None if v is None else orjson.loads(v) for v in row] for row in pipe.execute()]

    def in_redis(user: int, items: list[int]) -> Any:
        found = client.mget([f"b:u:{user}", *(f"b:i:{item}" for item in items)])
        return [None if blob is None else orjson.loads(blob) for blob in found]

    def in_sqlite(user: int, items: list[int]) -> Any:
        names = [f"u:{user}", *(f"i:{item}" for item in items)]
        places = ",".join("?" * len(names))
        found = dict(database.execute(f"SELECT name, data FROM blobs WHERE name IN ({places})", names).fetchall())
        return [orjson.loads(found[name]) if name in found else None for name in names]

    return {
        "Redis, pipelined HMGET": hashes,
        "Redis, packed blobs": in_redis,
        "SQLite, packed blobs": in_sqlite,
    }


def committing(store: Features) -> Callable[[int], None]:
    """What a commit changes for a reader of the store: the note of its time, and a row of attributes."""
    profiles, rows = Profiles(store.folder, store.plan.slots, writes=True), SqliteRows(store.folder / "online.db")

    def commit(number: int) -> None:
        with profiles.writing() as some:
            some.note(ARRIVED, b"%d" % number)
        rows.write("video", {-1: (number, {})})

    return commit


def timed(
    read: Callable[[int, list[int]], Any], users: list[int], items: list[int], reads: int,
    before: Callable[[int], None] = lambda number: None,
) -> dict[str, float]:  # fmt: skip
    draw, took = random.Random(0), []
    for k in range(reads + 20):
        user, some = draw.choice(users), draw.sample(items, ITEMS)
        before(k)
        begun = time.perf_counter()
        read(user, some)
        if k >= 20:  # the first ones open connections and fill caches
            took.append(1000 * (time.perf_counter() - begun))
    p50, p99 = np.percentile(took, (50, 99))
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def measure(source: str, reads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="minutehand-ranker-") as name, redis_server(Path(name)) as port:
        folder = Path(name)
        yaml = folder / "redis.yaml"
        text = (ROOT / "feature_repo" / "feature_store.compose.yaml").read_text()
        head, rest = text.split("registry:\n")
        yaml.write_text(f"{head}registry: {folder}/redis/registry.db\nonline_store:{rest.split('online_store:')[1]}")
        os.environ["MINUTEHAND_REDIS"] = f"127.0.0.1:{port}"
        stores = {"SQLite": filled(folder / "sqlite", source, None), "Redis": filled(folder / "redis", source, yaml)}
        local = stores["SQLite"]
        users = local.offline.newest("profile")[local.plan.user_key].to_pylist()[:5000]
        items, now_ms = local.popular(2000)
        given = {f.name: f.default for f in local.plan.features["request"]}

        def asked(user: int, some: list[int]) -> Any:
            return user, some, [now_ms] * len(some), [given] * len(some)

        readers: dict[str, Callable[[int, list[int]], Any]] = {}
        for kind, store in stores.items():
            readers[f"ranker, rows in {kind}"] = lambda u, i, s=store: s.read(*asked(u, i))[0]
            readers[f"Feast, rows in {kind}"] = lambda u, i, s=store: through_feast.read(s, *asked(u, i))
        same = [read(users[3], items[:ITEMS]) for read in readers.values()]
        assert all(rows == same[0] for rows in same), "all of them read the same values"
        ours = readers["ranker, rows in SQLite"]
        readers |= peers(port, folder, finished(local, users, items))
        figures = {kind: timed(read, users, items, reads) for kind, read in readers.items()}
        figures["ranker, after a commit"] = timed(ours, users, items, reads, committing(local))
        columns = sum(len(local.plan.inputs.get(view, of_view)) for view, of_view in local.plan.columns.items())
    peer = min(figures[kind]["p50_ms"] for kind in ("Redis, packed blobs", "SQLite, packed blobs"))
    return {
        "source": source,
        "items": ITEMS,
        "features": len(local.plan.declaration.features),
        "view_columns": columns,
        "reads": reads,
        "read_vs_raw": round(figures["ranker, rows in SQLite"]["p50_ms"] / peer, 2),
        "after_commit_vs_raw": round(figures["ranker, after a commit"]["p50_ms"] / peer, 2),
        "read_ms": figures,
    }
