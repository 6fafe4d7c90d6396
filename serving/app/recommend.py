"""Recommends items: candidates, their features from the feature store, and the scores of the served model.

scorers = Scorers(["127.0.0.1:8500"], "ranker", declaration)
recommender = Recommender(store, {"served": scorers}, [Popular(store)])
for item in recommender.recommend(user_id=7, k=10, at_ms=now).items:
    print(item.item_id, item.rank_score)
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common import process
from features.store import Features
from serving.app.problem import Problem
from serving.app.sources import Source, gather
from serving.client import PredictionFailed, Scorer
from serving.experiment.arms import SERVED, Arm, arm_of
from serving.ranking import rank_scores
from streaming.contract.schema import BadMessage, check, rule, shown
from streaming.declaration import Declaration

CANDIDATES = 200
OF_THE_ITEM = ("item", "video", "derived")
"""The views whose features differ between the items of one request."""
_BUSY_S = 2.0
"""The longest time that a request waits for others before it is refused."""
_STATUS_S = 10.0
"""A replica is asked for its lineage after a new delta, and when the last answer is older than this."""

log = process.logger("app")


class Item(NamedTuple):
    """An item of a list: what ranks it, its score of each task, its source, and its features as scored."""

    item_id: int
    rank_score: float
    scores: dict[str, float]
    source: str
    features: dict[str, Any]


class ModelState(NamedTuple):
    """The state of the model that scored: its lineage, its delta, and the event time that it has learned."""

    lineage: str
    seq: int
    learned_until_ms: int


@dataclass
class Recommendation:
    """A list for a user: `at_ms` is its event time, `read_ms` the wall time at which the features were read."""

    recommendation_id: str
    user_id: int
    at_ms: int
    read_ms: int = 0
    items: list[Item] = field(default_factory=list)
    arm: str = SERVED
    state: ModelState = ModelState("", -1, 0)
    ms: dict[str, float] = field(default_factory=dict)

    def impression_id(self, position: int) -> str:
        return f"{self.recommendation_id}-{position}"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a stage of the request, in milliseconds."""
        begun = time.perf_counter()
        yield
        self.ms[name] = round(1000 * (time.perf_counter() - begun), 3)


class Scorers:
    """Clients of one model's replicas: each thread borrows one. A call begins with the replica that answered last."""

    def __init__(
        self, addresses: Sequence[str], model: str, declaration: Declaration, timeout: float = 5.0, threads: int = 8
    ) -> None:
        self._idle: queue.LifoQueue[Scorer] = queue.LifoQueue()
        self._all = [Scorer(addresses, model, declaration, timeout) for _ in range(threads)]
        for scorer in self._all:
            self._idle.put(scorer)
        self._state, self._asked = ModelState("", -1, 0), -_STATUS_S

    def score(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[float]], ModelState]:
        """Returns each task's scores of the rows, and the state that scored them. Raises Problem 503."""
        try:
            scorer = self._idle.get(timeout=_BUSY_S)
        except queue.Empty:
            raise Problem(503, f"all {len(self._all)} requests at a time are taken; ask again later") from None
        try:
            scores, seq = scorer.score(rows)
            return scores, self._state_of(scorer, seq)
        except PredictionFailed as e:
            log.warning("%s", e)
            raise Problem(503, "no model server answers; ask again later") from None
        finally:
            self._idle.put(scorer)

    def _state_of(self, scorer: Scorer, seq: int) -> ModelState:
        state = self._state
        if seq != state.seq or time.monotonic() - self._asked > _STATUS_S:
            try:
                status = scorer.status(scorer.replica)
            except PredictionFailed:  # it has just died; its scores are good
                return state._replace(seq=seq)
            self._asked = time.monotonic()
            self._state = state = ModelState(status["lineage"], seq, status["learned_until_ms"])
        return state

    def close(self) -> None:
        for scorer in self._all:
            scorer.close()


class Recommender:
    """Ranks the candidates of `sources` by the model of the user's arm: `scorers` has one a name of `arms`."""

    def __init__(
        self, store: Features, scorers: Mapping[str, Scorers], sources: Sequence[Source],
        arms: Sequence[Arm] = (Arm(SERVED, 1.0),),
    ) -> None:  # fmt: skip
        self._store, self._scorers, self._sources, self._arms = store, scorers, sources, arms
        self._reading = threading.Lock()
        plan = store.plan
        self._declaration = plan.declaration
        self._given = {f.name: rule(f.kind) for f in plan.features["request"]}
        self._alike = not any(plan.features[view] for view in OF_THE_ITEM)

    def recommend(
        self,
        user_id: int,
        k: int,
        at_ms: int,
        *,
        task: str | None = None,
        given: Mapping[str, Any] | None = None,
        candidates: int = CANDIDATES,
    ) -> Recommendation:
        """Returns the k best of the candidates for a user. Equal scores go by item id.

        `task` ranks them (None: the declaration's `rank`). `given` are the features of the request, `at_ms` is its
        event time. Raises Problem: a wrong argument, a source whose items look alike, no candidate, no model server.
        """
        ranking = list(self._declaration.exponents) or [self._declaration.judged]
        needed = ranking if task is None else [task]
        self._check(needed[0], given or {})
        made = Recommendation(uuid.uuid4().hex, user_id, at_ms, arm=arm_of(user_id, self._arms))
        with made.stage("candidates"):
            found = gather(self._sources, user_id, max(k, candidates))
        if not found:
            raise Problem(503, "no item is known yet; send some to /v1/items, or impressions to /v1/events")
        with made.stage("features"), self._reading:
            ids, times = [c.item_id for c in found], [at_ms] * len(found)
            rows, made.read_ms = self._store.read(user_id, ids, times, [given or {}] * len(found))
        with made.stage("scores"):
            scores, made.state = self._scorers[made.arm].score(rows)
        if missing := [name for name in needed if name not in scores]:
            raise Problem(503, f"the served model has no task {missing[0]!r} yet; ask again after the next warm start")
        ranks = rank_scores(self._declaration, scores).tolist() if task is None else scores[task]
        made.items = sorted(
            (
                Item(c.item_id, ranks[n], {t: of_task[n] for t, of_task in scores.items()}, c.source, rows[n])
                for n, c in enumerate(found)
            ),
            key=lambda item: (-item.rank_score, item.item_id),
        )[:k]
        return made

    def _check(self, task: str, given: Mapping[str, Any]) -> None:
        """Raises Problem for what can be told before anything is asked."""
        declaration = self._declaration
        if self._alike:
            ids = ", ".join(f.name for f in declaration.features if f.kind == "id")
            raise Problem(
                409,
                f"source {self._store.source}: every item would get one score, since no feature has view"
                f" {', '.join(OF_THE_ITEM)}; declare the item's id (one of {ids or 'none'}) with view='item'",
            )
        if task not in declaration.tasks:
            raise Problem(422, f"task is {shown(task)}, allowed are {', '.join(declaration.tasks)}")
        for name, value in given.items():
            if name not in self._given:
                allowed = ", ".join(self._given) or "none: the source has no feature of view request"
                raise Problem(422, f"context has {shown(name)}, allowed are {allowed}")
            try:
                check(self._given[name], value, name)
            except BadMessage as e:
                raise Problem(422, f"context: {e}") from None
