"""Examples on a real broker as the join would have written them: for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from kafka import KafkaProducer

from streaming.declaration import Declaration
from streaming.source import Exposure
from streaming.topics import EXAMPLES


def examples(exposures: Iterable[Exposure], declaration: Declaration) -> Iterator[dict[str, Any]]:
    """Each exposure's positives one by one, then the negatives of its other tasks in one record; pi 1."""
    for e in exposures:
        record = {
            "v": 2,
            "impression_id": e.impression_id,
            "request_id": e.impression_id,
            "position": 0,
            "user_id": e.user_id,
            "item_id": e.item_id,
            "ts_ms": e.ts_ms,
            "lineage": "",
            "seq": -1,
            "features": e.features,
            "scores": {},
            "written_ms": 1_800_000_000_000 + e.ts_ms % 1000,
            "pi": 1.0,
        }
        n = len(declaration.tasks)
        one_of = {task: [float(i == k) for i in range(n)] for k, task in enumerate(declaration.tasks)}
        for task, at_ms in e.outcomes.items():
            values = [1.0 if x else None for x in one_of[task]]
            judged = {"labels": one_of[task], "weights": one_of[task], "values": values}
            yield {**record, "kind": "positive", "event_ms": at_ms, **judged}
        open_tasks = [float(task not in e.outcomes) for task in declaration.tasks]
        if any(open_tasks):
            event_ms = e.ts_ms + declaration.window_ms
            judged = {"labels": [0.0] * n, "weights": open_tasks, "values": [None] * n}
            yield {**record, "kind": "negative", "event_ms": event_ms, **judged}


class Sender:
    """Writes examples to their partition, in transactions as the join does; `progress` to every partition."""

    def __init__(self, bootstrap: str, partitions: int = 2) -> None:
        self._partitions = partitions
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, transactional_id="test-join")
        self._producer.init_transactions()

    def send(self, records: list[dict[str, Any]], progress_ms: int, raw: list[bytes] = []) -> None:  # noqa: B006
        self._producer.begin_transaction()
        for record in records:
            self._put(record["impression_id"], json.dumps(record).encode())
        for line in raw:
            self._put("raw", line)
        for partition in range(self._partitions):
            beat = {"heartbeat_ms": progress_ms, "subtask": 0, "subtasks": 1}
            self._producer.send(EXAMPLES, json.dumps(beat).encode(), partition=partition)
        self._producer.commit_transaction()

    def _put(self, key: str, line: bytes) -> None:
        self._producer.send(EXAMPLES, line, key=key.encode(), partition=sum(key.encode()) % self._partitions)

    def close(self) -> None:
        self._producer.close()
