"""A source grows while its platform is down: join and trainer go on, and every pair counts once.

Event time is a replay's. Part A is closed before the change; part B is shown before it and closes after it; part C is
of the new source.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from delta_log.files import read_rows
from delta_log.log import Log
from delta_log.verification import verify
from streaming import topics
from streaming.declaration import Declaration, Feature
from tests.streaming.join.test_join_job import Reader, Sender
from tests.support import join_oracle as oracle
from tests.support.broker import Broker
from tests.support.join_process import JoinProcess
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.replay import DISORDER_MS
from tests.support.wait import until
from training.learn import batch_pass

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

WINDOW_MS = 60_000
OLD = Declaration(
    "shop",
    (Feature("user", "id"), Feature("tags", "ids"), Feature("age", "number")),
    ("click", "like"),
    "click",
    WINDOW_MS,
)
MORE = (Feature("brand", "id", default=9), Feature("hits", "number", default=0.5), Feature("seen", "ids", "tags"))
NEW = replace(OLD, features=(*MORE, *OLD.features), tasks=(*OLD.tasks, "share"))
MODULE = """from streaming.declaration import Declaration
declaration = Declaration.from_json({!r})
history = live = lambda: iter(())
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        topics.create(running.bootstrap)
        yield running


def events(part: str, begin_ms: int, end_ms: int, declaration: Declaration) -> dict[str, list[dict[str, Any]]]:
    """Impressions and actions of one part, with the features and tasks of its time."""
    rng = random.Random(part)
    of: dict[str, list[dict[str, Any]]] = {"impressions": [], "actions": []}
    for n in range(150):
        shown, key = rng.randrange(begin_ms, end_ms), f"{part}-{n}"
        features: dict[str, Any] = {"user": n % 20, "tags": [n % 7], "age": rng.random()}
        if declaration is NEW:
            features |= {"brand": n % 5, "hits": 1.5, "seen": [n % 7]}
        of["impressions"].append(
            {"impression_id": key, "user_id": n % 20, "item_id": n, "ts_ms": shown, "features": features}
        )
        for task in declaration.tasks:
            if rng.random() < 0.4:
                of["actions"].append({"impression_id": key, "action": task, "ts_ms": min(shown + 2000, end_ms)})
    return of


def send(sender: Sender, of: dict[str, list[dict[str, Any]]]) -> None:
    for topic, rows in of.items():
        for event in rows:
            sender.send(topic, event)


def expected(parts: list[dict[str, list[dict[str, Any]]]], declaration: Declaration) -> oracle.Expected:
    """What the offline join makes of the parts under a declaration."""
    tables = []
    for topic, fields in (
        ("impressions", ("impression_id", "ts_ms")),
        ("actions", ("impression_id", "action", "ts_ms")),
    ):
        rows = [{name: event[name] for name in fields} for part in parts for event in part[topic]]
        at = 0 if topic == "impressions" else 10**6
        tables.append(pa.Table.from_pylist([{**row, "seq": at + k} for k, row in enumerate(rows)]))
    return oracle.join(*tables, tasks=declaration.tasks, window_ms=WINDOW_MS, pi=1.0, salt="minutehand")


def trainer(folder: Path, broker: Broker) -> Process:
    flags = ("--log", str(folder / "log"), "--kafka", broker.bootstrap, "--port", str(free_port()))
    source = ("--source", str(folder / "shop.py"), "--sync-every-ms", "300")
    return Process(folder / "trainer.log", "training.learn.online", *source, *flags)


def test_no_pair_is_lost_or_learned_twice_when_the_source_grows(broker: Broker, tmp_path: Path) -> None:
    log, module = Log(tmp_path / "log"), tmp_path / "shop.py"
    module.write_text(MODULE.format(OLD.to_json()))
    batch_pass.main(["--source", str(module), "--log", str(log.path), "--untrained", "--model", "deepfm?dim=4"])
    first = log.serving()
    assert first is not None
    part_a, part_b = events("a", 0, 60_000, OLD), events("b", 130_000, 170_000, OLD)
    shares = [{"impression_id": f"b-{n}", "action": "share", "ts_ms": 171_000} for n in range(0, 150, 3)]
    part_c = events("c", 172_000, 230_000, NEW)

    join = JoinProcess(tmp_path / "join", OLD.to_json(), broker.bootstrap)
    join.start()
    learner = trainer(tmp_path, broker)
    sender, examples = Sender(broker.bootstrap), Reader(broker.bootstrap, "examples")
    sender.heartbeat(0)
    send(sender, part_a)
    sender.heartbeat(125_000)
    examples.wait_past(125_000 - DISORDER_MS - 1, join)
    closed = expected([part_a], OLD)
    until(lambda: log.manifests(first)[-1].learned["count"] == closed.learned[0], "part A is learned", 60, learner)
    learner.kill()
    send(sender, part_b)
    sender.heartbeat(170_500)
    examples.wait_past(170_500 - DISORDER_MS - 1, join)
    join.process.kill()

    module.write_text(MODULE.format(NEW.to_json()))
    join.settings["declaration"] = json.loads(NEW.to_json())
    join.start()
    learner = trainer(tmp_path, broker)
    part_b["actions"] += shares
    send(sender, {"impressions": [], "actions": shares})
    sender.heartbeat(171_900)
    send(sender, part_c)
    sender.heartbeat(300_000)
    end_ms = 300_000 - DISORDER_MS - 1
    grown = until(lambda: (name := log.serving()) != first and name, "the grown lineage serves", 90, learner)
    last = until(
        lambda: (m := log.manifests(grown)[-1]).learned_until_ms >= end_ms and m, "all is learned", 90, learner
    )

    after = expected([part_b, part_c], NEW)
    assert not closed.late | closed.dead | after.late | after.dead
    assert sum(task == 2 and label == 1 for _, task, label in after.pairs) > 50
    count, total = (a + b for a, b in zip(closed.learned, after.learned, strict=True))
    assert last.learned == {"count": count, "sum": str(total & oracle.MASK)}
    assert learner.end() == 0 and join.process.end() == 0
    assert verify(log, grown) == []
    brands = {int(key) for m in log.manifests(grown) for key in read_rows(m)["brand"][0]}
    assert brands == {0, 1, 2, 3, 4, 9}, "9 is the default, of the impressions that were open"
    assert not Reader(broker.bootstrap, "examples.dead").poll()

    join.settings["declaration"] = json.loads(OLD.to_json())
    join.start()
    assert join.process.wait() == 2
    assert "feature hits is removed" in join.process.text()
