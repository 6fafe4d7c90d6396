"""Judges what apps send: events of a recommendation or whole ones, and attributes of users and items.

Each becomes an event of the contract (streaming/contract), or a Problem that names the field, its value and what is
allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from serving.app.database import Database, Recommended
from serving.app.ids import number, numbers, of_path
from serving.app.problem import Problem
from streaming.contract.contract import Contract
from streaming.contract.schema import BadMessage, check, rule, shown
from streaming.declaration import Declaration
from streaming.topics import ACTIONS, FORGET, IMPRESSIONS, KEYS, USERS
from streaming.views import Views

OF_RECOMMENDATION = ("recommendation_id", "item_id", "action", "ts_ms", "value")

Event = tuple[str, dict[str, Any]]
"""A topic and an event of it."""


class Intake:
    """`clock` gives the event time of now (ms). An event may be ahead of it by `ahead_ms`."""

    def __init__(
        self, declaration: Declaration, views: Views, database: Database, clock: Callable[[], int], ahead_ms: int
    ) -> None:
        self.contract = Contract(declaration, views)
        self._declaration, self._database, self._clock, self._ahead_ms = declaration, database, clock, ahead_ms
        self._kinds = {f.name: f.kind for f in declaration.features}

    def event(self, body: Any, texts: set[str]) -> Event:
        """An impression or an action. Adds the texts of its ids to `texts`. Raises Problem."""
        return self._judged(lambda: self._event(body, texts))

    def attributes(self, topic: str, body: Any, texts: set[str]) -> Event:
        """Attributes of a user or an item, for the topic of that name. Raises Problem."""
        return self._judged(lambda: self._attributes(topic, body, texts))

    def forget(self, user: str) -> Event:
        """The request to forget a user, up to now. `user` is of a path: a number, or a text. Raises Problem."""
        try:
            event = {"user_id": of_path(user, "user_id"), FORGET: self._clock()}
            self.contract.check(USERS, event)
        except BadMessage as e:
            raise Problem(422, str(e)) from None
        return USERS, event

    def _judged(self, make: Callable[[], Event]) -> Event:
        try:
            topic, event = make()
            self.contract.check(topic, event)
            self._check_time(event["ts_ms"])
        except BadMessage as e:
            raise Problem(422, str(e)) from None
        return topic, event

    def _event(self, body: Any, texts: set[str]) -> Event:
        event = _object(body)
        if "recommendation_id" in event:
            return ACTIONS, self._of_recommendation(event, texts)
        topic = ACTIONS if "action" in event else IMPRESSIONS
        self._only(event, self.contract.rule(topic)["properties"])
        event.setdefault("ts_ms", self._clock())
        if topic == IMPRESSIONS:
            for name in ("user_id", "item_id"):
                if name in event:
                    event[name] = number(event[name], name, texts)
            if "features" in event:
                event["features"] = numbers(event["features"], self._kinds, texts)
        else:
            self._check_position(event)
        return topic, event

    def _of_recommendation(self, event: Mapping[str, Any], texts: set[str]) -> dict[str, Any]:
        """The whole action of an item that a recommendation showed."""
        self._only(event, OF_RECOMMENDATION)
        for name in ("item_id", "action"):
            if name not in event:
                raise BadMessage("missing", f"{name} is missing")
        key, item_id = event["recommendation_id"], number(event["item_id"], "item_id", texts)
        check(rule("key"), key, "recommendation_id")
        made = self._database.find(key)
        if made is None:
            raise Problem(404, f"recommendation_id is {shown(key)}, which nobody made, or which is forgotten")
        if item_id not in made.items:
            raise Problem(404, f"item_id is {shown(event['item_id'])}, which recommendation {key} does not have")
        action = {name: event[name] for name in ("action", "value") if name in event}
        action["ts_ms"] = event.get("ts_ms", max(self._clock(), made.made_ms))
        self._check_window(action, made)
        return {"impression_id": f"{key}-{made.items.index(item_id)}", **action}

    def _check_position(self, action: Mapping[str, Any]) -> None:
        """Judges a whole action of one of our own impressions as if it named the recommendation."""
        ours = re.fullmatch(r"([0-9a-f]{32})-([0-9]{1,6})", str(action.get("impression_id")))
        if ours and (made := self._database.find(ours[1])):
            if int(ours[2]) >= len(made.items):
                raise Problem(404, f"impression_id is {shown(action['impression_id'])}, which nobody made")
            self._check_window(action, made)

    def _check_window(self, action: Mapping[str, Any], made: Recommended) -> None:
        ts_ms = action["ts_ms"]
        check(rule("time"), ts_ms, "ts_ms")
        if ts_ms < made.made_ms:
            raise Problem(422, f"ts_ms is {ts_ms}, allowed is {made.made_ms} or later, when the item was recommended")
        last = made.made_ms + self._declaration.window_ms
        if ts_ms > last:
            window_s = self._declaration.window_ms / 1000
            raise Problem(410, f"ts_ms is {ts_ms}, allowed is up to {last}: an action counts for {window_s:g} s")

    def _attributes(self, topic: str, body: Any, texts: set[str]) -> Event:
        event, key = _object(body), KEYS[topic]
        self._only(event, self.contract.rule(topic)["properties"])
        event.setdefault("ts_ms", self._clock())
        if key in event:
            event[key] = number(event[key], key, texts)
        if "attributes" in event:
            event["attributes"] = numbers(event["attributes"], self._kinds, texts)
        return topic, event

    def _check_time(self, ts_ms: int) -> None:
        latest = self._clock() + self._ahead_ms
        if ts_ms > latest:
            raise Problem(422, f"ts_ms is {ts_ms}, allowed is up to {latest}: the clock plus max_disorder")

    @staticmethod
    def _only(event: Mapping[str, Any], allowed: Any) -> None:
        for name in event.keys() - set(allowed):
            raise BadMessage("attribute", f"an event has {shown(name)}, allowed are {', '.join(allowed)}")


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise BadMessage("type", f"an event is {shown(body)}, allowed is object")
    return dict(body)
