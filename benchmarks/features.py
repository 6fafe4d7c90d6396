"""Measures the online read of all features of one user and 100 items: Feast on SQLite and on Redis, and Redis itself.

    python -m benchmarks.features [--reads 300]

Both of Feast's stores hold the same simulator's views. Redis itself holds the same values, read by pipelined HMGET (a
hash an entity) and as packed blobs (one MGET). It starts the redis-server on PATH on a free port, and ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.common.figures import commit, machine  # noqa: E402
from common import process  # noqa: E402
from common.errors import InputError  # noqa: E402
from features.counters import Counters  # noqa: E402
from features.push import begin  # noqa: E402
from features.store import Features  # noqa: E402
from streaming.event_time import MAX_DISORDER_MS  # noqa: E402
from streaming.source import load  # noqa: E402
from tests.support.ports import free_port  # noqa: E402

ITEMS = 100
SOURCE = "simulator?seed=1&minutes=1&history_minutes=10&viewers=2000&clips=2000"
RESULTS = ROOT / "benchmarks" / "results" / "features.json"


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


def filled(folder: Path, yaml: Path | None) -> Features:
    """A store with the batch views and the counters of the source's history."""
    store, source = Features(folder, SOURCE, yaml), load(SOURCE)
    declaration = source.declaration
    begin(store, source, Counters(declaration.judged, declaration.window_ms, MAX_DISORDER_MS))
    return store


def raw(port: int, store: Features) -> dict[str, Callable[[int, list[int]], Any]]:
    """Two readers of the same rows from Redis itself: all columns of all four views of each entity."""
    import redis

    client = redis.Redis(port=port, db=1)
    entities: dict[str, dict[str, Any]] = {}
    columns: dict[str, list[str]] = {"u": [], "i": []}
    for view in store.plan.columns:
        key, names = store.plan.key(view), [c.name for c in store.plan.columns[view]]
        kind = "u" if key == store.plan.user_key else "i"
        columns[kind] += names
        for row in store.offline.newest(view).select([key, *names]).to_pylist():
            entities.setdefault(f"{kind}:{row.pop(key)}", {}).update(row)
    with client.pipeline(transaction=False) as pipe:
        for name, row in entities.items():
            pipe.hset(f"h:{name}", mapping={column: json.dumps(value) for column, value in row.items()})
            pipe.set(f"b:{name}", json.dumps([row.get(column) for column in columns[name[0]]]))
        pipe.execute()

    def hashes(user: int, items: list[int]) -> Any:
        with client.pipeline(transaction=False) as pipe:
            pipe.hmget(f"h:u:{user}", columns["u"])
            for item in items:
                pipe.hmget(f"h:i:{item}", columns["i"])
            return [[None if v is None else json.loads(v) for v in row] for row in pipe.execute()]

    def blobs(user: int, items: list[int]) -> Any:
        packed = client.mget([f"b:u:{user}", *(f"b:i:{item}" for item in items)])
        return [None if blob is None else json.loads(blob) for blob in packed]

    return {"redis, pipelined HMGET": hashes, "redis, packed blobs": blobs}


def timed(read: Callable[[int, list[int]], Any], users: list[int], items: list[int], reads: int) -> dict[str, float]:
    draw, took = random.Random(0), []
    for k in range(reads + 20):
        user, some = draw.choice(users), draw.sample(items, ITEMS)
        begun = time.perf_counter()
        read(user, some)
        if k >= 20:  # the first ones open connections and fill caches
            took.append(1000 * (time.perf_counter() - begun))
    p50, p99 = np.percentile(took, (50, 99))
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.features", __doc__)
    parser.add_argument("--reads", type=process.at_least(1), default=300, help="of each kind (default: %(default)s)")
    args = parser.parse_args(argv)
    return process.run(lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="minutehand-features-") as name, redis_server(Path(name)) as port:
        folder = Path(name)
        yaml = folder / "redis.yaml"
        text = (ROOT / "feature_repo" / "feature_store.compose.yaml").read_text()
        head, rest = text.split("registry:\n")
        yaml.write_text(f"{head}registry: {folder}/redis/registry.db\nonline_store:{rest.split('online_store:')[1]}")
        os.environ["MINUTEHAND_REDIS"] = f"127.0.0.1:{port}"
        stores = {"Feast, SQLite": filled(folder / "sqlite", None), "Feast, Redis": filled(folder / "redis", yaml)}
        local = stores["Feast, SQLite"]
        users = local.offline.newest("profile")[local.plan.user_key].to_pylist()
        items = local.offline.newest("video")[local.plan.item_key].to_pylist()
        now_ms = local.popular(1)[1]

        def through(store: Features) -> Callable[[int, list[int]], Any]:
            return lambda user, some: store.read(user, some, [now_ms] * len(some), [{}] * len(some))

        same = [through(store)(users[3], items[:ITEMS])[0] for store in stores.values()]
        assert same[0] == same[1], "both stores hold the same values"
        readers = {**{kind: through(store) for kind, store in stores.items()}, **raw(port, local)}
        figures = {kind: timed(read, users, items, args.reads) for kind, read in readers.items()}
    features = len(local.plan.declaration.features)
    columns = sum(map(len, local.plan.columns.values()))
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.features", *sys.argv[1:]]),
        "machine": machine(),
        "load": round(os.getloadavg()[0], 1),
        "items": ITEMS,
        "features": features,
        "view_columns": columns,
        "reads": args.reads,
        "read_ms": figures,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"one user, {ITEMS} items, {features} features of {columns} columns of 4 views; {args.reads} reads of each kind"
    )
    print(f"{'':26}{'p50':>9}{'p99':>10}")
    for kind, ms in figures.items():
        print(f"{kind:26}{ms['p50_ms']:>6} ms{ms['p99_ms']:>7} ms")


if __name__ == "__main__":
    sys.exit(main())
