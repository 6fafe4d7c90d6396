"""Brings the batch views of a source, `profile` of its users and `video` of its items, into the feature store.

It writes the rows that the store does not hold yet: of new users and items, with other attributes, or with a column
that the source has since it grew. So a start of the feature push brings in what the source's tables have then. What
messages have brought since (features/attributes.py) stays, if it is newer.
"""

from __future__ import annotations

import pyarrow as pa

from common import process
from features.attributes import BATCH_ROWS, rows_of, write
from features.plan import TS
from features.store import Features

log = process.logger("features")


def refresh(store: Features) -> dict[str, int]:
    """Writes the rows of the source's tables that the store lacks. Returns the number of each view."""
    written = {}
    for view, read in (("profile", store.plan.views.users), ("video", store.plan.views.items)):
        if view not in store.plan.columns:
            continue
        table = read()
        rows = store.offline.unlogged(view, table) if table.num_rows else table
        parts = [rows.slice(first, BATCH_ROWS) for first in range(0, rows.num_rows, BATCH_ROWS)]
        if changed := sum(_write(store, view, part) for part in parts):
            written[view] = changed
            log.info("%s: %d rows are new or have other values", view, changed)
    return written


def _write(store: Features, view: str, table: pa.Table) -> int:
    """Writes rows as they are, or merged into a row that messages have changed. Returns the number of written rows."""
    keys = table[store.plan.key(view)].to_pylist()
    merged = {key: row for key, row in rows_of(store, view, keys).items() if row.has_messages}
    of_messages = [key in merged for key in keys]
    for row in table.filter(pa.array(of_messages)).to_pylist():
        merged[row[store.plan.key(view)]].replace(row[TS], row)
    as_it_is = table.filter(pa.array([not is_merged for is_merged in of_messages]))
    store.write({view: as_it_is.to_pydict()})
    return len(as_it_is) + write(store, view, merged)
