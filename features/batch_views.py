"""Brings the batch views of a source, `profile` of its users and `video` of its items, into the feature store.

It writes the rows that the store does not hold yet: of new users and items, with other attributes, or with a column
that the source has since it grew. So a start of the feature push brings in what the source's tables have then.
"""

from __future__ import annotations

from common import process
from features.store import Features

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
