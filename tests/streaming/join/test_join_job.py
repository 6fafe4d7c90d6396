"""The whole join job on a real broker, killed in between, against the offline oracle of what was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from infra.supervise import checks
from streaming import topics
from streaming.declaration import Declaration, Feature
from tests.support import join_oracle as oracle
from tests.support.broker import Broker
from tests.support.disk import fill, small_disk
from tests.support.join_process import JoinProcess
from tests.support.replay import DISORDER_MS, LEASE
from tests.support.wait import until

WINDOW_MS, PI, SALT = 60_000, 0.5, "test"
TASKS = ("click", "like")
FEATURES = (Feature("user", "id"), Feature("tags", "ids"), Feature("age", "number", default=0.5))
DECLARATION = Declaration("test", FEATURES, TASKS, "click", WINDOW_MS)
WAIT_S = 120
BAD = [
    b"{",
    b'{"impression_id": "x", "ts_ms": "soon"}',
    b"\xff\xfe",
    b"[]",
    b'{"impression_id": "x", "user_id": 9223372036854775808, "item_id": 1, "ts_ms": 1, "action": "share"}',
    b'{"impression_id": "x", "user_id": 1, "item_id": 1, "action": "click", "ts_ms": -1}',
    b'{"impression_id": "x", "user_id": -9223372036854775808, "item_id": 1, "ts_ms": 9, "action": 1}',
    b'{"impression_id": "far", "user_id": 1, "item_id": 1, "ts_ms": 253402300799999, "action": "click"}',
]


class Sender:
    """Writes both topics and keeps the log that the oracle reads. `names` are other names of the topics."""

    def __init__(self, bootstrap: str, names: Mapping[str, str] | None = None) -> None:
        self.names = names or {"impressions": "impressions", "actions": "actions"}
        self.producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
        self.log: dict[str, list[dict[str, Any]]] = {"impressions": [], "actions": []}
        self.messages: list[bytes] = []
        self.bad: Counter[tuple[str, str]] = Counter()
        self.seen_w = oracle.BEFORE_ALL

    def send(self, topic: str, event: dict[str, Any]) -> None:
        message = json.dumps(event).encode()
        kept = {k: event[k] for k in ("impression_id", "action", "ts_ms") if k in event}
        self.log[topic].append({"seq": len(self.messages), "w_ms": self.seen_w, **kept})
        self.messages.append(message)
        self.producer.send(self.names[topic], message, key=event["impression_id"].encode())

    def send_bad(self, topic: str, message: bytes) -> None:
        self.bad[topic, hashlib.sha256(message).hexdigest()] += 1
        self.producer.send(topic, message)

    def heartbeat(self, t: int) -> None:
        for topic in self.log:
            for partition in range(topics.PARTITIONS):
                message = json.dumps({"heartbeat_ms": t, "lease": LEASE}).encode()
                self.producer.send(self.names[topic], message, partition=partition)
        self.producer.flush()


class Reader:
    """Reads a topic as the trainer does, with read_committed, from its beginning."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.consumer = KafkaConsumer(
            bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        self.partitions = [TopicPartition(topic, p) for p in range(topics.PARTITIONS)]
        self.consumer.assign(self.partitions)
        self.records: dict[int, list[dict[str, Any]]] = {p.partition: [] for p in self.partitions}

    def poll(self) -> bool:
        batches = self.consumer.poll(200)
        for partition, batch in batches.items():
            self.records[partition.partition] += [json.loads(record.value) for record in batch]
        return bool(batches)

    def progress(self) -> int:
        return min(
            max((r["heartbeat_ms"] for r in records if "heartbeat_ms" in r), default=oracle.BEFORE_ALL)
            for records in self.records.values()
        )

    def is_past(self, t: int) -> bool:
        self.poll()
        return self.progress() >= t

    def wait_past(self, t: int, join: JoinProcess) -> None:
        until(lambda: self.is_past(t), f"progress {t}", WAIT_S, join.process)

    def all(self, count: int) -> list[dict[str, Any]]:
        """The records once there are `count`, and whatever comes with them."""
        deadline = time.monotonic() + 30
        while (self.poll() or self.count() < count) and time.monotonic() < deadline:
            pass
        return [r for p in self.partitions for r in self.records[p.partition]]

    def count(self) -> int:
        return sum(map(len, self.records.values()))


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        topics.create(running.bootstrap)
        yield running


@pytest.fixture
def join(broker: Broker, tmp_path: Path) -> Iterator[JoinProcess]:
    process = JoinProcess(tmp_path / "join", DECLARATION.to_json(), broker.bootstrap, pi=PI, salt=SALT)
    yield process


def traffic(rng: random.Random, count: int, span_ms: int) -> list[tuple[int, str, dict[str, Any]]]:
    """(place in the order of sending, topic, event): shuffled within the disorder, a tenth of them twice."""
    events = []
    for n in range(count):
        shown = rng.randrange(span_ms)
        features = {"user": rng.randrange(-5, 50), "tags": rng.sample(range(9), rng.randrange(4)), "age": rng.random()}
        impression = {
            "impression_id": f"i-{n}",
            "user_id": n % 50,
            "item_id": n % 90,
            "ts_ms": shown,
            "features": features,
        }
        events.append((shown, "impressions", impression))
        for task in TASKS:
            if rng.random() < 0.4:
                # Some before their impression, some past the window, most in between, and edges.
                delay = rng.choice([0, -1, WINDOW_MS, WINDOW_MS + 1, *[rng.randrange(WINDOW_MS) for _ in range(40)]])
                if shown + delay >= 0:
                    action = {"impression_id": f"i-{n}", "action": task, "ts_ms": shown + delay, "value": 1.5}
                    events.append((shown + delay, "actions", action))
        if n % 50 == 0:
            events.append((shown, "actions", {"impression_id": f"nobody-{n}", "action": "click", "ts_ms": shown}))
    placed = [(t + rng.randrange(DISORDER_MS), topic, event) for t, topic, event in events]
    copies = [(t + rng.randrange(DISORDER_MS), topic, event) for t, topic, event in events if rng.random() < 0.1]
    return sorted(placed + copies, key=lambda place: place[0])


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


@pytest.mark.timeout(600)
def test_equals_the_offline_join_whatever_is_killed(broker: Broker, join: JoinProcess) -> None:
    rng = random.Random(5)
    span = 600_000
    events = traffic(rng, 4000, span)
    sender, examples = Sender(broker.bootstrap), Reader(broker.bootstrap, "examples")
    join.start()
    sender.heartbeat(0)

    kills = sorted(rng.sample(range(60, 540), 4))
    late: list[tuple[str, dict[str, Any]]] = []
    place = 0
    for second in range(1, events[-1][0] // 1000 + 2):
        while place < len(events) and events[place][0] < second * 1000:
            _, topic, event = events[place]
            sender.send(topic, event)
            if rng.random() < 0.02:
                late.append((topic, event))
            place += 1
        sender.heartbeat(second * 1000)
        if second == 30:
            for topic in ("impressions", "actions"):
                for message in BAD:
                    sender.send_bad(topic, message)
        if second in kills:
            # Killed while it works; what it had not committed must come once, and only once.
            join.ready()
            if second != kills[0]:
                time.sleep(rng.random() * 0.4)  # somewhere between two checkpoints: no state to wait for
            join.process.kill()
            join.start()
        if second in (200, 400):
            # What is sent now is behind event time for certain, in the middle of a window or past its end.
            examples.wait_past(second * 1000 - DISORDER_MS - 1, join)
            sender.seen_w = examples.progress()
            for topic, event in late:
                sender.send(topic, event)
            sender.seen_w, late = oracle.BEFORE_ALL, []
    end = span + 3 * WINDOW_MS
    sender.heartbeat(end)
    examples.wait_past(end - DISORDER_MS - 1, join)

    assert place == len(events)
    expected = oracle.join(
        table(sender.log["impressions"]),
        table(sender.log["actions"]),
        tasks=TASKS,
        window_ms=WINDOW_MS,
        pi=PI,
        salt=SALT,
    )
    assert len(expected.late) > 100 and expected.duplicates > 500 and len(expected.sampled_out) > 1000 and expected.dead

    shown = {row["impression_id"]: json.loads(sender.messages[row["seq"]]) for row in sender.log["impressions"]}
    learned: Counter[tuple[str, int, int]] = Counter()
    for records in examples.records.values():
        progress = oracle.BEFORE_ALL
        for record in records:
            if "heartbeat_ms" in record:
                assert record["heartbeat_ms"] > progress and (record["subtask"], record["subtasks"]) == (0, 1)
                progress = record["heartbeat_ms"]
                continue
            assert record["kind"] == "positive" or record["event_ms"] > progress, "a window closed behind the progress"
            sent = shown[record["impression_id"]]
            assert all(record[k] == sent[k] for k in ("user_id", "item_id", "ts_ms", "features")) and record["pi"] == PI
            for task, (label, weight) in enumerate(zip(record["labels"], record["weights"], strict=True)):
                assert label == (weight if record["kind"] == "positive" else 0)
                if weight:
                    learned[record["impression_id"], task, int(label)] += 1
    assert {pair: n for pair, n in learned.items() if n > 1} == {}
    assert set(learned) == expected.pairs

    explained: dict[str, Counter[tuple[str, str]]] = {}
    for kind, wanted in (("late", expected.late), ("dead", expected.dead)):
        explained[kind] = Counter()
        for topic in ("impressions", "actions"):
            places = {row["seq"] for row in sender.log[topic]} & wanted
            for seq in places:
                explained[kind][topic, hashlib.sha256(sender.messages[seq]).hexdigest()] += 1
    explained["dead"] += sender.bad
    for kind, wanted_messages in explained.items():
        got: Counter[tuple[str, str]] = Counter()
        for topic in ("impressions", "actions"):
            count = sum(n for (t, _), n in wanted_messages.items() if t == topic)
            for record in Reader(broker.bootstrap, f"{topic}.{kind}").all(count):
                message = base64.b64decode(record["message"])
                assert record["sha256"] == hashlib.sha256(message).hexdigest() and record["size"] == len(message)
                assert record["topic"] == topic and record["reason"] and record["offset"] >= 0
                got[topic, record["sha256"]] += 1
        assert got == wanted_messages, kind

    assert join.process.end() == 0


def topics_of_its_own(broker: Broker, prefix: str) -> dict[str, str]:
    names = {name: f"{prefix}-{name}" for name in ("impressions", "actions", "examples")}
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    sides = [f"{names[name]}.{end}" for name in ("impressions", "actions") for end in ("dead", "late")]
    admin.create_topics([NewTopic(name, topics.PARTITIONS, 1) for name in (*names.values(), *sides)])
    admin.close()
    return names


def test_a_full_disk_is_reported_and_loses_nothing(broker: Broker, tmp_path: Path) -> None:
    names, features = topics_of_its_own(broker, "full"), {"features": {"user": 1, "tags": [], "age": 0.5}}
    sender, examples = Sender(broker.bootstrap, names), Reader(broker.bootstrap, names["examples"])
    with small_disk(tmp_path, 400):  # Flink unpacks libraries of 150 MB
        job = JoinProcess(tmp_path / "join", DECLARATION.to_json(), broker.bootstrap, topics=names)
        check = checks.flink_running(f"http://127.0.0.1:{job.port}")
        job.start()
        for name, ts_ms in (("before", 1000), ("full", 2000)):
            sender.send("impressions", {"impression_id": name, "user_id": 1, "item_id": 2, "ts_ms": ts_ms, **features})
            sender.send("actions", {"impression_id": name, "action": "click", "ts_ms": ts_ms})
            sender.heartbeat(ts_ms + DISORDER_MS)
            if name == "before":
                examples.wait_past(ts_ms - 1, job)
                filled = fill(tmp_path)
        until(lambda: check().startswith(("job state: RESTARTING", "no example is committed")), "the reason", 60)
        filled.unlink()
        examples.wait_past(1999, job)
        until(lambda: check() == "", "the join to commit again", 60)
        records = [r for records in examples.records.values() for r in records if "labels" in r]
        assert sorted(r["impression_id"] for r in records) == ["before", "full"]
        assert job.process.end() == 0


def test_an_action_days_after_its_impression_joins_though_the_job_was_killed(broker: Broker, tmp_path: Path) -> None:
    """Its source's window says so."""
    day_ms = 86_400_000
    declaration = Declaration("slow", FEATURES, TASKS, "click", 7 * day_ms)
    names = topics_of_its_own(broker, "slow")
    sender, examples = Sender(broker.bootstrap, names), Reader(broker.bootstrap, names["examples"])
    job = JoinProcess(tmp_path, declaration.to_json(), broker.bootstrap, topics=names)
    job.start()
    features = {"user": 1, "tags": [], "age": 0.5}
    shown = {"impression_id": "i", "user_id": 1, "item_id": 2, "ts_ms": day_ms, "features": features}
    sender.send("impressions", shown)
    for t in (day_ms, 4 * day_ms):
        sender.heartbeat(t)
        examples.wait_past(t - DISORDER_MS - 1, job)
        job.process.kill()
        job.start()
    sender.send("actions", {"impression_id": "i", "action": "click", "ts_ms": 4 * day_ms})
    sender.heartbeat(9 * day_ms)
    examples.wait_past(9 * day_ms - DISORDER_MS - 1, job)
    pairs = [r for records in examples.records.values() for r in records if "labels" in r]
    assert [(r["kind"], r["labels"], r["weights"]) for r in pairs] == [
        ("positive", [1, 0], [1, 0]),
        ("negative", [0, 0], [0, 1]),
    ]
    assert job.process.end() == 0


def test_a_second_job_in_the_folder_is_refused(broker: Broker, join: JoinProcess, tmp_path: Path) -> None:
    join.start()
    join.ready()
    second = JoinProcess(
        tmp_path / "second", DECLARATION.to_json(), broker.bootstrap, state_dir=join.settings["state_dir"]
    )
    second.start()
    assert second.process.wait() == 2
    assert "another join job is running in it" in second.process.text()
    assert join.process.end() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallelism": 3}, "setting parallelism is 3: allowed is 1 to 2"),
        ({"topics": {"impressions": "gone"}}, "has no topic 'gone"),
        ({"pi": 0}, "setting pi is 0: allowed is a number, 0 < pi <= 1"),
    ],
)
def test_a_wrong_setting_is_named(broker: Broker, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    job = JoinProcess(tmp_path, DECLARATION.to_json(), broker.bootstrap, **settings)
    job.start()
    assert job.process.wait() == 2
    assert message in job.process.text()
