"""Recommends items: the recently popular ones, with features from the feature store, scored by the served model.

store = Features("var/local/features", "simulator")
scorer = Scorer(["127.0.0.1:8500"], "ranker", store.plan.declaration)
for item in recommend(store, scorer, user_id=7, top=10):
    print(item.item_id, item.score)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from common.errors import InputError
from features.store import Features
from serving.client import Scorer

CANDIDATES = 200
OF_THE_ITEM = ("item", "video", "derived")
"""The views whose features differ between the items of one request."""


class NothingToRecommend(InputError):
    """There is no candidate: no item has been counted yet."""


class Recommended(NamedTuple):
    """One item: the score that ranks it, its score of each task, its features, and the delta that scored it."""

    item_id: int
    score: float
    scores: dict[str, float]
    features: dict[str, Any]
    seq: int


def recommend(
    store: Features,
    scorer: Scorer,
    user_id: int,
    top: int = 10,
    *,
    task: str | None = None,
    candidates: int = CANDIDATES,
    at_ms: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> list[Recommended]:
    """Ranks the `candidates` items that were shown most lately, and returns the `top` best. Equal scores go by item id.

    `task` ranks them (None: the declaration's judged one). `at_ms` is the time of the request (None: that of the
    counters), `given` are its request features. Raises NothingToRecommend, PredictionFailed, InputError if no feature
    of the source is one of the item, and ValueError for a wrong argument.
    """
    declaration = store.plan.declaration
    if not any(store.plan.features[view] for view in OF_THE_ITEM):
        ids = ", ".join(f.name for f in declaration.features if f.kind == "id")
        raise InputError(
            f"source {store.source}: every item would get one score, since no feature has view"
            f" {', '.join(OF_THE_ITEM)}; declare the item's id (one of {ids or 'none'}) with view='item'"
        )
    task = declaration.judged if task is None else task
    if task not in declaration.tasks:
        raise ValueError(f"task is {task!r}, allowed are {', '.join(declaration.tasks)}")
    for name, value in (("top", top), ("candidates", candidates)):
        if value < 1:
            raise ValueError(f"{name} is {value}, allowed is >= 1")
    allowed = [f.name for f in store.plan.features["request"]]
    for name in given or {}:
        if name not in allowed:
            raise ValueError(f"given is {name!r}, allowed are the request's features: {', '.join(allowed) or 'none'}")
    items, now_ms = store.popular(candidates)
    if not items:
        raise NothingToRecommend(f"{store.folder}: no item has been shown yet")
    times = [now_ms if at_ms is None else at_ms] * len(items)
    rows, _ = store.read(user_id, items, times, [given or {}] * len(items))
    scores, seq = scorer.score(rows)
    recommended = [
        Recommended(item, scores[task][k], {t: of_task[k] for t, of_task in scores.items()}, rows[k], seq)
        for k, item in enumerate(items)
    ]
    return sorted(recommended, key=lambda r: (-r.score, r.item_id))[:top]
