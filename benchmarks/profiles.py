"""Measures the profile store: adds, reads beside a writer at full speed, bytes; beside SQLite rows and Redis.

    python -m benchmarks.profiles [--events 4000000] [--users 100000] [--items 10000] [--peer-events 200000]

`ranker` is the read of one user and 100 items for the ranker, beside Feast's and beside finished values
(benchmarks/load/ranker.py).
`archive` is the archive's writer (benchmarks/load/archive.py). `push` is the feature push on the simulator's slots: a
backlog, then 500 events/s. The rest is the store by itself. An event makes seven adds: five slots of its user and two
of its item. `history` is ten days at once: slices age all the time. `live` is a writer for which a second of event time
passes with 20,000 events. The peers and a store of ours hold the same adds: ten days of fewer events, for a fiftieth of
the users and items, so that profiles are as full. `SQLite rows` upserts a row a count and minute, as the window of an
hour needs, and reads by GROUP BY. `Redis` has a sorted set a profile, slot, action and day, and reads by ZUNION: it
answers 7 days alone. It starts the redis-server on PATH, without persistence.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from benchmarks.common.figures import commit, machine  # noqa: E402
from benchmarks.load import archive, push, ranker  # noqa: E402
from common import process  # noqa: E402
from common.errors import Refused  # noqa: E402
from features.profile.query import Query  # noqa: E402
from features.profile.store import Profiles  # noqa: E402
from features.profile.transaction import Adds  # noqa: E402
from streaming.slots import DAY_MS, MINUTE_MS, WINDOWS, Slot, Slots  # noqa: E402

log = process.logger("profiles")
RESULTS = ROOT / "benchmarks" / "results" / "profiles.json"
ACTIONS = ("shown", "click", "like", "long_view")
SHARES = (0.6, 0.25, 0.05, 0.1)
FEATURES = (997, 50, 13, 5)
"""How many values the first four slots of a user have; the fifth is by item."""
SLOTS = Slots(
    (
        *(Slot(f"user_{place}", "user", by=f"f{place}") for place in range(4)),
        Slot("user_item", "user", by="item"),
        Slot("item", "item", windows=tuple(WINDOWS)),
        Slot("item_tab", "item", by="f3"),
    ),
    ACTIONS,
)
BATCH = 20_000
SAY_S = 15
"""The seconds between two lines of progress."""
DAYS, BEGIN_MS = 10, 1_790_000_000_000
TOP = Query("user_0", "7d", by="shown", k=50)
ROW_BYTES = 20
"""What a row of a count takes by itself: a feature id, a time, a count."""


def batches(args: argparse.Namespace, n: int, events: int, step_ms: int, first: int = 0) -> Iterator[tuple[int, Adds]]:
    """The time after each batch of events, and its adds. Users are uniform, items have a heavy head."""
    rng = np.random.default_rng(first)
    for batch in range(first, first + n):
        now_ms = BEGIN_MS + (batch + 1) * step_ms
        user, item = rng.integers(0, args.users, events), rng.zipf(1.2, events) % args.items
        ts_ms, action = now_ms - rng.integers(1, step_ms + 1, events), rng.choice(len(ACTIONS), events, p=SHARES)
        features = [*(item % values for values in FEATURES), item, np.zeros_like(item), item % FEATURES[-1]]
        slot = np.repeat(np.arange(len(features)), events)
        profile = np.concatenate([user] * 5 + [item] * 2)
        columns = [np.tile(column, len(features)) for column in (ts_ms, action, np.ones_like(item))]
        yield now_ms, Adds(slot, profile, np.concatenate(features), *columns)


def written(store: Profiles, some: Iterator[tuple[int, Adds]], topic: str = "history") -> tuple[int, list[float]]:
    """Adds batches, with the compaction that falls due. Returns the last time, and the seconds of CPU of each batch."""
    now_ms, cpu_s, said_s = 0, [], time.monotonic()
    for batch, (now_ms, adds) in enumerate(some):
        if topic == "history" and time.monotonic() - said_s > SAY_S:
            log.info("%s: %d events", topic, batch * BATCH)
            said_s = time.monotonic()
        begun = time.process_time()
        with store.writing() as commit:
            commit.add(adds)
            commit.positions({topic: (batch + 1) * BATCH})
        while store.compact(now_ms):
            pass
        cpu_s.append(time.process_time() - begun)
    return now_ms, cpu_s


def filled(args: argparse.Namespace, folder: Path) -> tuple[int, dict[str, Any]]:
    """A store with the history of `args.events`, and what the last third of it took."""
    n = max(3, args.events // BATCH)
    with Profiles(folder, SLOTS, writes=True) as store:
        now_ms, cpu_s = written(store, batches(args, n, BATCH, DAYS * DAY_MS // n))
    us = 1e6 * sum(cpu_s[-(n // 3) :]) / (n // 3) / BATCH
    with closing(sqlite3.connect(folder / "profiles.sqlite")) as raw:
        (profiles,) = raw.execute("SELECT count(*) FROM profiles").fetchone()
        (slices,) = raw.execute("SELECT sum(length(rows) - 4) / 24 FROM slices").fetchone()
        (fresh,) = raw.execute("SELECT coalesce(sum(length(rows) - 4) / 32, 0) FROM fresh").fetchone()
    size = (folder / "profiles.sqlite").stat().st_size
    return now_ms, {
        "events": n * BATCH,
        "us_per_event": round(us, 2),
        "events_per_s_core": round(1e6 / us),
        "adds_per_s_core": round(7e6 / us),
        "profiles": profiles,
        "rows": slices + fresh,
        "bytes": size,
        "bytes_per_profile": round(size / profiles),
        "bytes_vs_rows": round(size / (ROW_BYTES * (slices + fresh)), 2),
    }


def writer(args: argparse.Namespace, folder: Path, now_ms: int) -> int:
    """The pid of a process that adds batches without a pause, a second of event time each."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with Profiles(folder, SLOTS, writes=True) as store:
            written(store, batches(args, 1_000_000, BATCH, 1000, (now_ms - BEGIN_MS) // 1000), "live")
    finally:
        os._exit(1)


def reads(read: Callable[[list[int]], Any], users: int, times: int, at_once: int) -> dict[str, float]:
    """Milliseconds of a read of `at_once` profiles, and of its CPU."""
    rng, wall, cpu = np.random.default_rng(1), [], []
    for k in range(times + 10):
        ids = rng.integers(0, users, at_once).tolist()
        begun, begun_cpu = time.perf_counter(), time.thread_time()
        read(ids)
        if k >= 10:  # the first ones fill caches
            cpu.append(1000 * (time.thread_time() - begun_cpu))
            wall.append(1000 * (time.perf_counter() - begun))
    (p50, p99), (cpu_p50, cpu_p99) = np.percentile(wall, (50, 99)), np.percentile(cpu, (50, 99))
    figures = {"p50_ms": p50, "p99_ms": p99, "cpu_p50_ms": cpu_p50, "cpu_p99_ms": cpu_p99}
    return {name: round(float(value), 3) for name, value in figures.items()}


def megabytes(pid: int | None = None) -> int:
    """The memory of a process, by default of this one."""
    return round(psutil.Process(pid).memory_info().rss / 1e6)


def cpu_of(pid: int) -> float:
    """Seconds of CPU of a process. It makes the batches, too."""
    return float(sum(psutil.Process(pid).cpu_times()[:2]))


def events(store: Profiles) -> int:
    """How many events the writer of `beside` has committed."""
    committed: int = store.positions().get("live", 0)
    return committed


def apart(function: Callable[[], Any]) -> Any:
    """What a function returns, as JSON, from a process of its own: this one keeps its memory for the reads."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with open(sending, "w") as out:
                json.dump(function(), out)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(sending)
    with open(receiving) as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise Refused(f"a process of the benchmark ended with status {status}")
    return json.loads(text)


def beside(args: argparse.Namespace, folder: Path, now_ms: int) -> dict[str, Any]:
    """Reads while another process writes at full speed."""
    before_mb = megabytes()
    pid = writer(args, folder, now_ms)
    try:
        with Profiles(folder, SLOTS) as store:
            while events(store) < 10 * BATCH:  # what has piled up in the history is folded first
                time.sleep(0.05)

            def read(ids: list[int]) -> Any:
                return store.read("user", ids, [TOP], now_ms)

            begun, cpu_s, before = time.monotonic(), cpu_of(pid), events(store)
            figures: dict[str, Any] = {
                "one": reads(read, args.users, 3000, 1),
                "batch100": reads(read, args.users, 1000, 100),
            }
            cpu_s, took_s, live = cpu_of(pid) - cpu_s, time.monotonic() - begun, events(store) - before
            figures["live_us_per_event"] = round(1e6 * cpu_s / live, 2)
            figures["live_events_per_s_core"] = round(live / cpu_s)
            figures["live_events_per_s"] = round(live / took_s)
            figures["writer_share_of_a_core"] = round(cpu_s / took_s, 2)
            figures["reader_mb"], figures["reader_grew_mb"] = megabytes(), megabytes() - before_mb
            figures["writer_mb"] = megabytes(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if os.WTERMSIG(status) != signal.SIGKILL:
        raise Refused(f"the writer ended by itself: status {status}")
    return figures


def ours(args: argparse.Namespace, folder: Path, n: int) -> dict[str, Any]:
    with Profiles(folder, SLOTS, writes=True) as store:
        now_ms, cpu_s = written(store, batches(args, n, BATCH, DAY_MS))
        figures = reads(lambda ids: store.read("user", ids, [TOP], now_ms), args.users, 1000, 1)
    size = (folder / "profiles.sqlite").stat().st_size
    return {"add_us": add_us(sum(cpu_s), n), "read": figures, "mb": round(size / 1e6)}


def add_us(seconds: float, n: int) -> float:
    return round(1e6 * seconds / n / BATCH / 7, 2)


def keyed(adds: Adds, slice_ms: int) -> Iterator[tuple[int, ...]]:
    """slot, profile, action, slice, feature of each add."""
    columns = adds.slot, adds.profile, adds.action, adds.ts_ms // slice_ms, adds.feature
    return zip(*(column.tolist() for column in columns), strict=True)


def sqlite_rows(args: argparse.Namespace, folder: Path, n: int) -> dict[str, Any]:
    upsert = "INSERT INTO counts VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1"
    top = (
        "SELECT feature, sum(count) AS n FROM counts WHERE slot = 0 AND profile = ? AND action = 0 AND minute >= ?"
        " GROUP BY feature ORDER BY n DESC, feature LIMIT 50"
    )
    with closing(sqlite3.connect(folder / "rows.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            "CREATE TABLE counts (slot, profile, action, minute, feature, count,"
            " PRIMARY KEY (slot, profile, action, minute, feature)) WITHOUT ROWID"
        )
        seconds = 0.0
        for now_ms, adds in batches(args, n, BATCH, DAY_MS):  # noqa: B007
            begun = time.process_time()
            db.execute("BEGIN")
            db.executemany(upsert, keyed(adds, MINUTE_MS))
            db.execute("COMMIT")
            seconds += time.process_time() - begun
        first = WINDOWS["7d"].begin_ms(now_ms) // MINUTE_MS
        figures = reads(lambda ids: db.execute(top, (ids[0], first)).fetchall(), args.users, 1000, 1)
    return {"add_us": add_us(seconds, n), "read": figures, "mb": round((folder / "rows.sqlite").stat().st_size / 1e6)}


def redis_sets(args: argparse.Namespace, port: int, n: int) -> dict[str, Any]:
    """CPU is that of client and server together."""
    import redis

    client = redis.Redis(port=port)
    server = psutil.Process(client.info("server")["process_id"])

    def cpu() -> float:
        return time.process_time() + sum(server.cpu_times()[:2])

    seconds = 0.0
    for now_ms, adds in batches(args, n, BATCH, DAY_MS):  # noqa: B007
        begun = cpu()
        with client.pipeline(transaction=False) as pipe:
            for slot, profile, action, day, feature in keyed(adds, DAY_MS):
                pipe.zincrby(f"{slot}:{profile}:{action}:{day}", 1, str(feature))
            pipe.execute()
        seconds += cpu() - begun
    first = WINDOWS["7d"].begin_ms(now_ms) // DAY_MS

    def read(ids: list[int]) -> Any:
        keys = [f"0:{ids[0]}:0:{day}" for day in range(first, now_ms // DAY_MS + 1)]
        return sorted(client.zunion(keys, withscores=True), key=lambda pair: -pair[1])[:50]

    figures = reads(read, args.users, 1000, 1)
    return {"add_us": add_us(seconds, n), "read": figures, "mb": round(client.info("memory")["used_memory"] / 1e6)}


def measure(args: argparse.Namespace) -> None:
    n = max(1, args.peer_events // BATCH)
    few = argparse.Namespace(users=max(1, args.users // 50), items=max(1, args.items // 50))
    with tempfile.TemporaryDirectory(prefix="minutehand-profiles-") as name:
        folder = Path(name)
        log.info("history: %d events", args.events)
        now_ms, store = apart(lambda: filled(args, folder / "full"))
        log.info("live: reads beside a writer")
        reading = beside(args, folder / "full", now_ms)
        log.info("archive: from Kafka")
        archived = archive.measure()
        log.info("push: from Kafka")
        pushed = push.measure(args.push_events, args.users, args.items, live_s=20, rate=500)
        log.info("peers: SQLite and Redis")
        peers = {"profile store": ours(few, folder / "peer", n), "SQLite rows": sqlite_rows(few, folder, n)}
        with ranker.redis_server(folder) as port:
            peers["Redis sorted sets"] = redis_sets(few, port, n)
        log.info("ranker: reads of 100 items")
        ranked = ranker.measure(args.source, args.reads)
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.profiles", *sys.argv[1:]]),
        "machine": machine(),
        "load": round(os.getloadavg()[0], 1),
        "summary": {
            "push_events_per_s_core": pushed["events_per_s_core"],
            "visible_p99_s": pushed["visible_p99_s"],
            "read_p50_ms": reading["one"]["p50_ms"],
            "read_p99_ms": reading["one"]["p99_ms"],
            "batch100_p99_ms": reading["batch100"]["p99_ms"],
            "ranker_read_vs_raw": ranked["read_vs_raw"],
            "bytes_per_profile": store["bytes_per_profile"],
            "archive_events_per_s_core": archived["events_per_s_core"],
        },
        "archive": archived,
        "push": pushed,
        "history": store,
        "live": reading,
        "ranker": ranked,
        "peers": {"events": n * BATCH, **peers},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(
        json.dumps(
            {key: result[key] for key in ("summary", "archive", "push", "history", "live", "ranker", "peers")}, indent=1
        )
    )


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.profiles", __doc__)
    numbers = {"events": 4_000_000, "users": 100_000, "items": 10_000, "peer-events": 200_000, "push-events": 200_000}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=process.at_least(1), default=default, help="(default: %(default)s)")
    parser.add_argument("--reads", type=process.at_least(1), default=300, help="of each kind, for the ranker")
    parser.add_argument("--source", default="kuairand?days=2", help="whose features the ranker reads")
    args = parser.parse_args(argv)
    return process.run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
