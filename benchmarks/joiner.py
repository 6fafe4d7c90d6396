"""Measures the throughput of the join beside a pass-through job, which has all but the join itself.

    python benchmarks/joiner.py                 # both jobs, three times each in turn; goal: join >= 0.35 x pass-through
    python benchmarks/joiner.py --impressions 50000 --rounds 1 --open 50000

A backlog of events is written to a broker. Each job reads it from the beginning, with the same parser, keys and
guarantees. Its time is that from the first to the last record it wrote, by Kafka's timestamps, without Java's start.

Then a job with a window of seven days reads impressions that all stay open. The files of its checkpoint, over their
number, are the state of an open impression. It prints a table and writes benchmarks/results/joiner.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # noqa: E402

from benchmarks.common.figures import commit  # noqa: E402
from common import process  # noqa: E402
from streaming import topics  # noqa: E402
from streaming.declaration import Declaration, Feature  # noqa: E402
from tests.support.broker import Broker  # noqa: E402
from tests.support.join_process import JoinProcess  # noqa: E402
from tests.support.replay import DISORDER_MS, LEASE  # noqa: E402

GOAL = 0.35
IDS = tuple(Feature(f"id_{n}", "id") for n in range(14))
NUMBERS = tuple(Feature(f"number_{n}", "number") for n in range(5))
TASKS = ("click", "like", "follow", "comment")
RATES = (0.35, 0.05, 0.02, 0.02)
WINDOW_MS = 1_200_000
DECLARATION = Declaration("benchmark", (*IDS, Feature("tags", "ids"), *NUMBERS), TASKS, "click", WINDOW_MS)
STEP_MS, PER_STEP = 1_000, 50
"""Event time between two heartbeats, and the impressions in it. So 60,000 impressions wait at any time."""


def backlog(bootstrap: str, impressions: int, seed: int = 7) -> tuple[int, int]:
    """Writes the events in the order of their time. Returns the numbers of events and bytes."""
    rng = random.Random(seed)
    producer = KafkaProducer(
        bootstrap_servers=bootstrap, acks="all", linger_ms=20, batch_size=2**18, compression_type="lz4"
    )
    events = size = shown = now = 0
    actions: dict[int, list[tuple[str, bytes]]] = {}

    def send(topic: str, key: str, message: bytes) -> None:
        nonlocal events, size
        producer.send(topic, message, key=key.encode())
        events, size = events + 1, size + len(message)

    while shown < impressions or actions:
        for _ in range(min(PER_STEP, impressions - shown)):
            key, ts = f"impression-{shown:09d}", now + rng.randrange(STEP_MS)
            send("impressions", key, impression(key, ts, rng))
            for task, rate in zip(TASKS, RATES, strict=True):
                if rng.random() < rate:
                    action_ms = ts + int(min(WINDOW_MS, rng.expovariate(1 / 60_000)))
                    action = {"impression_id": key, "action": task, "ts_ms": action_ms, "value": 1.0}
                    message = json.dumps(action, separators=(",", ":")).encode()
                    actions.setdefault(action_ms // STEP_MS, []).append((key, message))
            shown += 1
        for key, message in actions.pop(now // STEP_MS, []):
            send("actions", key, message)
        now += STEP_MS
        heartbeat(producer, now)
    heartbeat(producer, now + WINDOW_MS + 10_000)
    producer.flush()
    producer.close()
    return events, size


def impression(key: str, ts_ms: int, rng: random.Random) -> bytes:
    features: dict[str, Any] = {f.name: rng.getrandbits(40) for f in IDS}
    features["tags"] = [rng.randrange(1000) for _ in range(3)]
    features |= {f.name: round(rng.gauss(0, 1), 4) for f in NUMBERS}
    scores = {task: round(rng.random(), 6) for task in TASKS}
    event = {
        "impression_id": key, "request_id": key, "user_id": rng.getrandbits(30), "item_id": rng.getrandbits(30),
        "ts_ms": ts_ms, "features": features, "scores": scores,
        "lineage": "000001-abcdef01", "seq": 12, "position": 3, "arm": "served",
    }  # fmt: skip
    return json.dumps(event, separators=(",", ":")).encode()


def heartbeat(producer: KafkaProducer, t: int, inputs: Iterable[str] = (topics.IMPRESSIONS, topics.ACTIONS)) -> None:
    for topic in inputs:
        for partition in range(topics.PARTITIONS):
            producer.send(topic, json.dumps({"heartbeat_ms": t, "lease": LEASE}).encode(), partition=partition)


class Run(NamedTuple):
    """The records that one job wrote, the seconds between the first and the last, and its CPU time meanwhile."""

    records: int
    seconds: float
    cpu_s: float


def wait_for(bootstrap: str, topic: str, events: int, last_w: int | None, job: JoinProcess) -> Run:
    """Waits until the job has written everything."""
    java = psutil.Process(job.process.pid)
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest", isolation_level="read_committed",
        max_partition_fetch_bytes=2**24,
    )  # fmt: skip
    consumer.assign([TopicPartition(topic, p) for p in range(topics.PARTITIONS)])
    records, first, last, done, cpu_s = 0, float("inf"), 0.0, 0, 0.0
    deadline = time.monotonic() + 900
    while (done < topics.PARTITIONS) if last_w is not None else (records < events):
        for batch in consumer.poll(500).values():
            if not records:
                cpu_s = sum(java.cpu_times()[:2])
            first, last = min(first, batch[0].timestamp), max(last, batch[-1].timestamp)
            for record in batch:
                if record.key is None:
                    done += last_w is not None and json.loads(record.value)["heartbeat_ms"] == last_w
                else:
                    records += 1
        if job.process.code is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{records} records of {events} events:\n{job.process.tail()}")
    consumer.close()
    return Run(records, (last - first) / 1000, sum(java.cpu_times()[:2]) - cpu_s)


def open_state(bootstrap: str, impressions: int, seed: int = 7) -> float:
    """The bytes on the disk for each impression whose window is open, in a job's checkpoint."""
    from kafka.admin import KafkaAdminClient, NewTopic

    names = {name: f"open-{name}" for name in ("impressions", "actions", "examples")}
    sides = [f"{names[name]}.{end}" for name in ("impressions", "actions") for end in ("dead", "late")]
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(name, topics.PARTITIONS, 1) for name in (*names.values(), *sides)])
    admin.close()
    rng, producer = random.Random(seed), KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20)
    for n in range(impressions):
        key = f"impression-{n:09d}"
        producer.send(names["impressions"], impression(key, n, rng), key=key.encode())
    heartbeat(producer, impressions, (names["impressions"], names["actions"]))
    producer.flush()
    producer.close()
    folder = Path(tempfile.mkdtemp(prefix="minutehand-joiner-"))
    declared = replace(DECLARATION, window_ms=7 * 86_400_000).to_json()
    job = JoinProcess(folder, declared, bootstrap, topics=names, checkpoint_ms=1000, source="benchmark")
    job.start()
    try:
        # A progress that can be read belongs to a complete checkpoint, which holds all of them.
        wait_for(bootstrap, names["examples"], 0, impressions - DISORDER_MS - 1, job)
        job.process.kill()
        files = (folder / "state/checkpoints").rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file()) / impressions
    finally:
        job.process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def measure_job(bootstrap: str, main: str, number: int, events: int, last_w: int, checkpoint_ms: int) -> Run:
    from kafka.admin import KafkaAdminClient, NewTopic

    topic = f"{main.lower()}-{number}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(topic, topics.PARTITIONS, 1)])
    admin.close()
    folder = Path(tempfile.mkdtemp(prefix="minutehand-joiner-"))
    names = {"impressions": topics.IMPRESSIONS, "actions": topics.ACTIONS, "examples": topic}
    job = JoinProcess(
        folder, DECLARATION.to_json(), bootstrap, main, topics=names, checkpoint_ms=checkpoint_ms, source="benchmark"
    )
    job.start()
    try:
        return wait_for(bootstrap, topic, events, last_w if main == "JoinJob" else None, job)
    finally:
        job.process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.joiner", __doc__)
    count = process.at_least(1)
    parser.add_argument("--impressions", type=count, default=300_000, help="in the backlog (default: %(default)s)")
    parser.add_argument("--open", type=count, default=500_000, help="impressions that stay open (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=3, help="runs of each job, in turn (default: %(default)s)")
    parser.add_argument("--checkpoint-ms", type=count, default=1000, help="as at sync_every >= 5 s (default: 1000)")
    args = parser.parse_args(argv)
    return process.run(lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    jobs = ("PassThrough", "JoinJob")
    rates: dict[str, list[float]] = {job: [] for job in jobs}
    cpu: dict[str, list[float]] = {job: [] for job in jobs}
    records: dict[str, int] = {}
    with Broker() as broker:
        topics.create(broker.bootstrap)
        events, size = backlog(broker.bootstrap, args.impressions)
        last_w = json.loads(newest(broker.bootstrap))["heartbeat_ms"] - DISORDER_MS - 1
        print(f"{events} events, {size / events:.0f} bytes each, {args.impressions} impressions", flush=True)
        for number in range(args.rounds):
            for job in rates:
                run = measure_job(broker.bootstrap, job, number, events, last_w, args.checkpoint_ms)
                records[job] = run.records
                rates[job].append(events / run.seconds)
                cpu[job].append(1e6 * run.cpu_s / events)
                line = f"{rates[job][-1]:10,.0f} events/s{cpu[job][-1]:8.1f} us of CPU each{run.records:10} records"
                print(f"round {number + 1}  {job:12}{line}", flush=True)
        state = open_state(broker.bootstrap, args.open)
    middle = {job: statistics.median(values) for job, values in rates.items()}
    ratio = middle["JoinJob"] / middle["PassThrough"]
    print(f"\n{'job':14}{'events/s, median':>18}{'least':>10}{'most':>10}{'us of CPU each':>16}")
    for job, values in rates.items():
        line = f"{middle[job]:18,.0f}{min(values):10,.0f}{max(values):10,.0f}{statistics.median(cpu[job]):16.1f}"
        print(f"{job:14}{line}")
    print(f"ratio {ratio:.2f}, goal {GOAL}: {'reached' if ratio >= GOAL else 'missed'}")
    print(f"{state:.0f} bytes on the disk an open impression, of {args.open}")
    result = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": " ".join(["python", "benchmarks/joiner.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "events": events,
        "bytes_per_event": round(size / events),
        "checkpoint_ms": args.checkpoint_ms,
        "events_per_s": {job: [round(v) for v in values] for job, values in rates.items()},
        "cpu_us_per_event": {job: [round(v, 1) for v in values] for job, values in cpu.items()},
        "load_average": round(os.getloadavg()[1], 1),
        "records": records,
        "open_impressions": args.open,
        "bytes_per_open_impression": round(state),
        "ratio": round(ratio, 3),
        "goal": GOAL,
    }
    file = ROOT / "benchmarks" / "results" / "joiner.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


def newest(bootstrap: str) -> bytes:
    """The last message of a partition, which is the last heartbeat."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=None)
    partition = TopicPartition(topics.IMPRESSIONS, 0)
    consumer.assign([partition])
    consumer.seek(partition, consumer.end_offsets([partition])[partition] - 1)
    while not (batch := consumer.poll(500)):
        pass
    consumer.close()
    return bytes(batch[partition][-1].value)


if __name__ == "__main__":
    sys.exit(main())
