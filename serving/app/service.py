"""What the routes of the service do, without HTTP: bodies in, answers out, Problems for what is not taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from serving.app.database import Database
from serving.app.event_log import EventLog
from serving.app.gauges import Gauges
from serving.app.ids import number, numbers
from serving.app.intake import Event, Intake
from serving.app.problem import Problem
from serving.app.recommend import Recommendation, Recommender
from streaming.contract.schema import BadMessage, check, shown
from streaming.declaration import Declaration
from streaming.publisher import impression
from streaming.topics import IMPRESSIONS

K, MAX_K, MAX_EVENTS = 10, 1000, 1000
_K = {"type": "integer", "minimum": 1, "maximum": MAX_K}
FIELDS = ("user_id", "k", "context", "task", "log")


class Question(NamedTuple):
    """The body of a request for a list, judged."""

    user_id: int
    k: int
    context: Mapping[str, Any]
    task: str | None
    log: bool


class Service:
    """`clock` gives the event time of now (ms)."""

    def __init__(
        self, declaration: Declaration, recommender: Recommender, intake: Intake, event_log: EventLog,
        database: Database, gauges: Gauges, clock: Callable[[], int],
    ) -> None:  # fmt: skip
        self.declaration, self.intake = declaration, intake
        self._recommender, self._event_log, self._database = recommender, event_log, database
        self._gauges, self._clock = gauges, clock
        self._kinds = {f.name: f.kind for f in declaration.features}

    def recommend(self, body: Any) -> dict[str, Any]:
        """Ranks items for a user, and logs each one as shown before it answers. Raises Problem."""
        texts: set[str] = set()
        asked = self._question(body, texts)
        made = self._recommender.recommend(
            asked.user_id, asked.k, self._clock(), task=asked.task, given=asked.context
        )  # fmt: skip
        if asked.log:
            with made.stage("log"):
                self._database.remember(texts)
                self._database.add(made.recommendation_id, made.at_ms, [item.item_id for item in made.items])
                self._event_log.write([(IMPRESSIONS, event) for event in _impressions(made)])
                self._gauges.event(IMPRESSIONS, "accepted", len(made.items))
        self._gauges.stages(made.ms)
        return self._answer(made, asked.log)

    def _question(self, body: Any, texts: set[str]) -> Question:
        if not isinstance(body, dict):
            raise Problem(422, f"the body is {shown(body)}, allowed is a JSON object")
        for name in body.keys() - set(FIELDS):
            raise Problem(422, f"the body has {shown(name)}, allowed are {', '.join(FIELDS)}")
        if "user_id" not in body:
            raise Problem(422, "user_id is missing")
        k, context, log, task = body.get("k", K), body.get("context", {}), body.get("log", True), body.get("task")
        try:
            check(_K, k, "k")
            check({"type": "object", "properties": {}}, context, "context")
            if not isinstance(log, bool):
                raise BadMessage("type", f"log is {shown(log)}, allowed is true or false")
            user_id = number(body["user_id"], "user_id", texts)
            context = numbers(context, self._kinds, texts)
        except BadMessage as e:
            raise Problem(422, str(e)) from None
        return Question(user_id, k, context, task, log)

    def _answer(self, made: Recommendation, logged: bool) -> dict[str, Any]:
        texts = self._database.texts([item.item_id for item in made.items])
        items = [
            {
                "item_id": texts.get(item.item_id, item.item_id),
                **({"impression_id": made.impression_id(position)} if logged else {}),
                "rank_score": item.rank_score,
                "scores": item.scores,
                "source": item.source,
            }
            for position, item in enumerate(made.items)
        ]
        return {
            **({"recommendation_id": made.recommendation_id} if logged else {}),
            "items": items,
            "arm": made.arm,
            "model": made.state._asdict(),
            "ms": made.ms,
        }

    def events(self, body: Any) -> tuple[int, dict[str, Any]]:
        """Takes one event, or several under `events`. Returns the HTTP status and the answer."""
        return self._take(body, "events", self.intake.event)

    def attributes(self, topic: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Takes the attributes of one user or item, or of several under the name of the topic."""
        return self._take(body, topic, lambda one, texts: self.intake.attributes(topic, one, texts))

    def forget(self, user: str) -> dict[str, Any]:
        """Forgets a user up to now: the topic has the request before this returns."""
        topic, event = self.intake.forget(user)
        self._event_log.write([(topic, event)])
        self._database.forget(event["user_id"])
        self._gauges.event(topic, "accepted")
        return {"accepted": 1, "refused": []}

    def _take(
        self, body: Any, many: str, judge: Callable[[Any, set[str]], Event]
    ) -> tuple[int, dict[str, Any]]:  # fmt: skip
        """Judges each event by itself. Those that are good are in Kafka before this returns."""
        several = isinstance(body, dict) and body.keys() == {many}
        bodies = body[many] if several else [body]
        if not isinstance(bodies, list) or not 1 <= len(bodies) <= MAX_EVENTS:
            given = f"{len(bodies)} of them" if isinstance(bodies, list) else shown(bodies)
            raise Problem(422, f"{many} is {given}, allowed is a list of 1 to {MAX_EVENTS}")
        good: list[Event] = []
        refused: list[tuple[int, Problem]] = []
        for index, one in enumerate(bodies):
            texts: set[str] = set()
            try:
                event = judge(one, texts)
                self._database.remember(texts)
                good.append(event)
            except Problem as e:
                self._gauges.event(many, "refused")
                refused.append((index, e))
        if refused and not several:
            raise refused[0][1]
        self._event_log.write(good)
        for topic, _ in good:
            self._gauges.event(topic, "accepted")
        named = [{"index": index, "status": e.status, "error": str(e)} for index, e in refused]
        return (200 if good else refused[0][1].status), {"accepted": len(good), "refused": named}


def _impressions(made: Recommendation) -> list[dict[str, Any]]:
    """The items of a list as they were shown: features, scores and state as served."""
    state = made.state
    return [
        impression(
            made.impression_id(position),
            made.recommendation_id,
            made.user_id,
            item.item_id,
            made.at_ms,
            position,
            item.features,
            item.scores,
            state.lineage,
            state.seq,
            made.arm,
            made.read_ms,
        )  # fmt: skip
        for position, item in enumerate(made.items)
    ]
