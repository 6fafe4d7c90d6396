"""Brings the batch views of a source, `profile` of its users and `video` of its items, into the feature store.

`refresh` writes the rows of the source's tables that the store does not hold yet: of new users and items, with other
attributes, or with a column that the source has since it grew. `Upserts` takes the rows that come by Kafka.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import process
from features.plan import TS, Plan
from features.store import Features
from streaming.contract.contract import OF_VIEW, Contract
from streaming.contract.schema import BadMessage
from streaming.publisher import KEY

BATCH_ROWS = 5000

log = process.logger("features")


def refresh(store: Features) -> dict[str, int]:
    """Writes the rows of the source's tables that the store lacks. Returns the number of each view."""
    written = {}
    for view, read in (("profile", store.plan.views.users), ("video", store.plan.views.items)):
        if view not in store.plan.columns:
            continue
        table = read()
        rows = store.offline.unlogged(view, table) if table.num_rows else table
        for first in range(0, rows.num_rows, BATCH_ROWS):
            store.write({view: rows.slice(first, BATCH_ROWS).to_pydict()})
        if rows.num_rows:
            written[view] = rows.num_rows
            log.info("%s: %d rows are new or have other values", view, rows.num_rows)
    return written


class Upserts:
    """Rows of the batch views from the topics `users` and `items`, until they are written. The newest of a key wins."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._contract = plan, Contract(plan.declaration, plan.views)
        self.views = {topic: view for view, topic in OF_VIEW.items() if view in plan.columns}
        """Topic -> its view, for the views that the source has."""
        self._rows: dict[str, dict[int, dict[str, Any]]] = {view: {} for view in self.views.values()}

    def __bool__(self) -> bool:
        return any(self._rows.values())

    def take(self, topic: str, message: bytes | None, is_future: Callable[[int], bool]) -> None:
        """Takes a message. Raises BadMessage, also for a row of the future, which no later row could replace."""
        event = self._contract.read(topic, message)
        if "heartbeat_ms" in event:
            raise BadMessage("missing", f"{KEY[topic]} is missing")
        if is_future(event[TS]):
            raise BadMessage("future", f"{TS} is {event[TS]}, which is ahead of event time")
        rows, key = self._rows[self.views[topic]], event[KEY[topic]]
        if key not in rows or rows[key][TS] <= event[TS]:
            rows[key] = {**event["attributes"], TS: event[TS]}

    def tables(self) -> dict[str, dict[str, list[Any]]]:
        """View -> the columns of the rows taken since the last call."""
        tables: dict[str, dict[str, list[Any]]] = {}
        for view, rows in self._rows.items():
            if rows:
                names = [column.name for column in self._plan.columns[view]]
                values = {name: [row.get(name) for row in rows.values()] for name in (*names, TS)}
                tables[view] = {self._plan.key(view): list(rows), **values}
                self._rows[view] = {}
        return tables
