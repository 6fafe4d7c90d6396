"""Measures a request for a list: HTTP, 200 candidates, their features, their scores, and its impressions in Kafka.

    python -m benchmarks.recommend [--seconds 30]

It starts a platform of its own, with a delta each second. First, requests come at a fixed rate, whether or not the last
one is answered: a request's time begins when it is due. A click follows every second list. Then clients send requests
as fast as they are answered. Clients, service, model server, Kafka and trainer share the machine.

It prints a table and writes benchmarks/results/recommend.json: milliseconds of the whole request, and of each stage of
the service.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.common.figures import commit, machine  # noqa: E402
from common import process  # noqa: E402
from infra.platform import Platform  # noqa: E402
from infra.settings import PORTS, load  # noqa: E402
from serving.app.recommend import CANDIDATES  # noqa: E402

SOURCE = "simulator?seed=1&minutes=1&history_minutes=10&viewers=2000&clips=2000"
RATE, K, THREADS, CLOSED = 50, 10, 24, 4
GOALS = {"request_p99_ms": "<= 50"}
RESULT = ROOT / "benchmarks" / "results" / "recommend.json"

_local = threading.local()


def post(address: str, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, over this thread's own connection. Raises OSError for a status other than 200."""
    connection = getattr(_local, "connection", None)
    if connection is None:
        connection = _local.connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", f"/v1/{route}", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content: dict[str, Any] = json.loads(answer.read())
    if answer.status != 200:
        raise OSError(f"{route} answers {answer.status} {content.get('error')}")
    return content


def ask(address: str, due: float, user: int, clicks: bool) -> tuple[float, dict[str, float]]:
    """One list, and perhaps a click: the milliseconds from `due` to the list, and those of its stages."""
    made = post(address, "recommend", {"user_id": user, "k": K})
    ms = 1000 * (time.perf_counter() - due)
    if clicks:
        action = {"impression_id": made["items"][user % K]["impression_id"], "action": "watch"}
        post(address, "events", action)
    return ms, made["ms"]


def open_loop(address: str, seconds: float) -> list[tuple[float, dict[str, float]]]:
    """Requests at RATE a second."""
    draw, begun = random.Random(0), time.perf_counter() + 0.1
    with ThreadPoolExecutor(THREADS) as pool:
        pending = []
        for n in range(round(RATE * seconds)):
            due = begun + n / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            pending.append(pool.submit(ask, address, due, draw.randrange(2000), n % 2 == 0))
        return [one.result() for one in pending]


def closed_loop(address: str, seconds: float) -> float:
    """The requests a second of CLOSED clients."""
    end = time.perf_counter() + seconds

    def client(n: int) -> int:
        draw, count = random.Random(n), 0
        while (now := time.perf_counter()) < end:
            ask(address, now, draw.randrange(2000), False)
            count += 1
        return count

    with ThreadPoolExecutor(CLOSED) as pool:
        return sum(pool.map(client, range(CLOSED))) / seconds


def percentiles(values: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


def measure(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="minutehand-recommend-") as var:
        settings = load(None, [f"{port}=0" for port in PORTS]).with_(
            name="recommend", var=var, source=SOURCE, sync_every="1s", mlflow=False, airflow=False, archive=False
        )
        with Platform(settings) as platform:
            platform.start(timeout_s=600)
            address = platform.address("app").removeprefix("http://")
            open_loop(address, 2)
            before = post(address, "recommend", {"user_id": 1, "log": False})["model"]["seq"]
            load_before = os.getloadavg()[0]
            calls = open_loop(address, args.seconds)
            after = post(address, "recommend", {"user_id": 1, "log": False})["model"]["seq"]
            rate = closed_loop(address, args.seconds / 3)
    request = percentiles([ms for ms, _ in calls])
    stages = {name: percentiles([stages[name] for _, stages in calls]) for name in calls[0][1]}
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.recommend", *sys.argv[1:]]),
        "machine": machine(),
        "load_before": round(load_before, 1),
        "candidates": CANDIDATES,
        "k": K,
        "rate": RATE,
        "requests": len(calls),
        "deltas": after - before,
        "stages": stages,
        "goals": GOALS,
        "summary": {
            "request_p50_ms": request["p50_ms"],
            "request_p99_ms": request["p99_ms"],
            "requests_per_s": round(rate, 1),
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(calls)} lists of {CANDIDATES} candidates at {RATE}/s, {after - before} deltas meanwhile")
    print(f"{'':12}{'p50':>9}{'p99':>12}")
    for name, ms in {"request": request, **stages}.items():
        print(f"{name:12}{ms['p50_ms']:>6} ms{ms['p99_ms']:>9} ms")
    print(f"{CLOSED} clients: {rate:.1f} lists a second")


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.recommend", __doc__ or "")
    parser.add_argument("--seconds", type=process.above(0.0), default=30.0, help="of requests (default: %(default)s)")
    args = parser.parse_args(argv)
    return process.run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
