"""The service for apps over stores that a test holds in its hand: real HTTP, no Kafka, no Feast, no model server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka.errors import KafkaTimeoutError

from features.plan import Plan, plan
from serving.app.database import Database
from serving.app.event_log import EventLog
from serving.app.gauges import Gauges
from serving.app.intake import Intake
from serving.app.problem import Problem
from serving.app.recommend import ModelState, Recommender
from serving.app.server import listening
from serving.app.service import Service
from serving.app.sources import Popular
from serving.app.web.api import Api
from serving.experiment.arms import SERVED
from streaming.contract.contract import Contract
from tests.support import shop_views

ITEMS = list(range(100, 140))


class Topics:
    """A publisher whose records are a list. `away`: no broker takes them."""

    def __init__(self, contract: Contract) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.contract, self.away, self.connections, self.refusal = contract, False, 0, ""

    def connect(self) -> Any:
        if self.away:
            raise KafkaTimeoutError("no broker")
        self.connections += 1
        return self

    def send(self, topic: str, event: Mapping[str, Any]) -> bool:
        self.contract.check(topic, dict(event))
        self.sent.append((topic, dict(event)))
        return True

    def flush(self) -> None:
        sent, self.sent = self.sent, []
        if self.away:
            raise KafkaTimeoutError("no broker")
        self.records += sent

    def close(self) -> None: ...

    def of(self, topic: str) -> list[dict[str, Any]]:
        return [event for name, event in self.records if name == topic]


class Store:
    """A feature store of the shop: every item is popular, and the best one is the last."""

    source = "shop"

    def __init__(self, items: Sequence[int] = ITEMS) -> None:
        self.plan: Plan = plan(shop_views)  # type: ignore[arg-type]
        self.items = list(items)

    def popular(self, n: int) -> tuple[list[int], int]:
        return self.items[:n], shop_views.START_MS

    def read(
        self, user_id: int, item_ids: Sequence[int], ts_ms: Sequence[int], requests: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], int]:
        rows = zip(item_ids, requests, strict=True)
        return [{"shopper": user_id, "product": item, **given} for item, given in rows], ts_ms[0]


@dataclass
class Models:
    """Scores an item by its id."""

    away: bool = False
    state: ModelState = ModelState("000001-0a1b2c3d", 12, 1_700_000_000_000)
    asked: list[int] = field(default_factory=list)

    def score(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[float]], ModelState]:
        if self.away:
            raise Problem(503, "no model server answers; ask again later")
        self.asked.append(len(rows))
        return {"buy": [(row["product"] % 1000) / 1000 for row in rows]}, self.state


@dataclass
class App:
    """A service that runs, and what is behind it."""

    url: str
    topics: Topics
    store: Any
    models: Any
    api: Api
    gauges: Gauges


@contextmanager
def app(folder: Path, *, key: str = "", store: Any = None, models: Any = None) -> Iterator[App]:
    """The service of a store, the shop's by default, on a free port."""
    store, models, gauges = store or Store(), models or Models(), Gauges()
    declaration, views = store.plan.declaration, store.plan.views
    database = Database(folder / "app.sqlite", 3_600_000)

    def now() -> int:
        return time.time_ns() // 1_000_000

    intake = Intake(declaration, views, database, now, 60_000)
    topics = Topics(intake.contract)
    event_log = EventLog(topics.connect)
    recommender = Recommender(store, {SERVED: models}, [Popular(store)])
    api = Api(declaration, views, key, gauges, lambda: "" if api.service else "starting")
    api.service = Service(declaration, recommender, intake, event_log, database, gauges, now)
    try:
        with listening(api.asgi, "127.0.0.1", 0) as port:
            yield App(f"http://127.0.0.1:{port}", topics, store, models, api, gauges)
    finally:
        event_log.close()
        database.close()
