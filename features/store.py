"""The feature store of one folder: Feast's registry, online and offline store, and how a source's rows get in and out.

    store = Features("var/local/features", "simulator?seed=7")
    rows, read_ms = store.read(user_id, item_ids, ts_ms, requests)   # the declared features, for serving
    table = store.historical(requests)                               # the same as they were readable at read_ms

A write is one step for readers: it holds the folder's lock while it becomes readable, and a read holds it shared. Each
write is first logged as Parquet, with its event time and the wall time at which it became readable (`arrived`). That
time is later than every read before, and not later than any read after. `read` is the ranker's path: one call of ours,
without Feast. Feast's own online read gives the same values. docs/features.md has Feast's traps.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common import process
from common.disk import locked, replace
from common.errors import InputError
from common.extras import require
from common.interval import milliseconds
from features.offline import ARROW, STAMP, TIMES, Offline, arrived
from features.plan import GIVEN, SERVICE, TS, Plan, on_demand, plan_of
from features.profile.database import FILE as PROFILES
from features.profile.store import Profiles
from streaming.declaration import Feature

REPO = Path(__file__).resolve().parents[1] / "feature_repo"
KINDS = {"id": ARROW["int"], "ids": ARROW["ints"], "number": ARROW["number"]}
_WRITE_ROWS = 2000
_PLACE = "_place"
"""The column of a request's row number. No feature has such a name."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Features:
    """The store in `folder`, of the source named `source`. Opening it applies feature_repo's definitions if need be.

    `yaml` names Feast's stores (default: FEAST_FS_YAML_FILE_PATH, else feature_repo/feature_store.yaml).
    """

    def __init__(self, folder: Path | str, source: str, yaml: Path | None = None) -> None:
        self.folder, self.source = Path(folder).resolve(), source
        self.plan: Plan = plan_of(source)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self.folder / "lock"
        self.offline = Offline(self.folder, self.plan, self._lock)
        with _environment(MINUTEHAND_FEATURES=str(self.folder), MINUTEHAND_SOURCE=source):
            self.feast = self._open(yaml)
        self._service = self.feast.get_feature_service(SERVICE)
        self._online = self.feast.provider.online_store.of(self.feast.config)

    def _open(self, yaml: Path | None) -> Any:
        """Opens Feast's store, and applies the definitions of this source."""
        require("feast", "the feature store is Feast's")
        os.environ.setdefault("FEAST_USAGE", "False")
        from feast import FeatureStore
        from feast.repo_config import load_repo_config

        file = yaml or Path(os.environ.get("FEAST_FS_YAML_FILE_PATH") or REPO / "feature_store.yaml")
        store = FeatureStore(config=load_repo_config(REPO, file))
        applied, facts = self.folder / "applied.json", {"source": self.source, "plan": _fingerprint(self.plan)}
        with locked(self._lock):
            if not (self.folder / PROFILES).exists():
                Profiles(self.folder, self.plan.slots, writes=True).close()
            # A registry in a database may be lost while the folder is still there.
            if applied.is_file() and json.loads(applied.read_text()) == facts and store.list_feature_services():
                return store
            self.offline.fill()
            self.offline.grow()
            with warnings.catch_warnings():  # Feast warns that on-demand views are experimental
                warnings.simplefilter("ignore", RuntimeWarning)
                store.apply(_definitions())
            replace(applied, json.dumps(facts).encode())
        return store

    def read(
        self, user_id: int, item_ids: Sequence[int], ts_ms: Sequence[int], requests: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], int]:
        """Reads the declared features of a user and each of some items, and the wall time of the read (ms).

        `ts_ms` and `requests` are each row's time of request and request features. A feature that is absent, or that
        no view has, takes its default.
        """
        columns: dict[str, list[Any]] = {TS: list(ts_ms)}
        for f in self.plan.features["request"]:
            columns[GIVEN + f.name] = [_to_feast(f, features.get(f.name)) for features in requests]
        with locked(self._lock, shared=True):
            read_ms = now_ms()
            columns |= self._columns(user_id, item_ids)
        columns |= on_demand(self.source, columns) if self.plan.on_demand else {}
        return self._declared(columns, [user_id] * len(item_ids), list(item_ids)), read_ms

    def _columns(self, user_id: int, item_ids: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of the views that features need, a value an item."""
        columns: dict[str, list[Any]] = {}
        for view, of_view in self.plan.columns.items():
            of_user = self.plan.key(view) == self.plan.user_key
            keys = [user_id] if of_user else item_ids
            if view in self.plan.inputs:
                found = self._online.counted(view, self.plan.inputs[view], keys)
            else:
                found = self._online.attributes(view, [column.name for column in of_view], keys)
            columns |= {name: values * len(item_ids) if of_user else values for name, values in found.items()}
        return columns

    def write(self, rows: Mapping[str, Mapping[str, Sequence[Any]]]) -> int:
        """Logs rows of views, and makes all of them readable at once. Returns the wall time of that (ms).

        The columns of `rows[view]` are the entity's key, the view's columns and `ts_ms`. A row that is older than the
        key's stored one is logged and changes nothing online.
        """
        tables = {view: self.offline.table(view, columns) for view, columns in rows.items()}
        tables = {view: table for view, table in tables.items() if table.num_rows}
        if not tables:
            return now_ms()
        with self.arriving() as arrived_ms:
            for view, table in tables.items():
                self.offline.log(view, table, arrived_ms)
            for view, table in tables.items():
                self._online.rows.write(view, self._packed(view, table))
        return arrived_ms

    @contextmanager
    def arriving(self) -> Iterator[int]:
        """Holds the folder's lock while something becomes readable. Yields the wall time (ms) at which it is.

        That is the next millisecond, for which the block waits at its end: every read of this one came before, every
        read of that one comes after.
        """
        with locked(self._lock):
            arrived_ms = now_ms() + 1
            yield arrived_ms
            while now_ms() < arrived_ms:
                time.sleep(0.0002)

    def repair(self, committed_ms: int) -> None:
        """Removes from the log the rows that a killed write logged and nobody could read.

        Only rows later than the pusher's last commit (wall clock) are removed: what made them is read and pushed again.
        Older rows stay, because an online store that lost them is filled from the log.
        """
        self.offline.unbroken(lambda: self._repair(committed_ms))

    def _repair(self, committed_ms: int) -> None:
        with locked(self._lock):
            for view in self.plan.columns:
                newest = max(self.offline.files(view), key=arrived, default=None)
                if newest is None or arrived(newest) <= committed_ms:
                    continue
                table = pq.read_table(newest)
                last = pc.equal(table["arrived"], pc.max(table["arrived"])).to_numpy()
                stands = np.array(self._stands(view, table), bool)
                if (last & ~stands).any():
                    self.offline.write(newest, table.filter(pa.array(~last | stands)))

    def historical(self, requests: pa.Table) -> pa.Table:
        """Returns the declared features of each request as they were readable then, in the same order.

        `requests` has columns of the archive's impressions: user_id, item_id, ts_ms (of the request), read_ms (wall)
        and feature_<name> of the request's features. A feature that is absent takes its default.
        """
        n = requests.num_rows
        columns = {
            _PLACE: pa.array(np.arange(n)),
            self.plan.user_key: requests["user_id"],
            self.plan.item_key: requests["item_id"],
            TS: requests[TS],
            "event_timestamp": pc.multiply(requests["read_ms"], 1000).cast(STAMP),
        }
        for f in self.plan.features["request"]:
            name = f"feature_{f.name}"
            values = requests[name].to_pylist() if name in requests.column_names else [None] * n
            columns[GIVEN + f.name] = pa.array([_to_feast(f, v) for v in values], KINDS[f.kind])
        frame = pa.table(columns).to_pandas()
        joined = self.offline.unbroken(lambda: self._joined(frame))
        if joined.num_rows != n or joined[_PLACE].to_pylist() != list(range(n)):
            raise RuntimeError(f"feature store: Feast returned {joined.num_rows} rows of {n}")
        rows = self._declared(joined.to_pydict(), requests["user_id"].to_pylist(), requests["item_id"].to_pylist())
        schema = pa.schema([(f.name, KINDS[f.kind]) for f in self.plan.declaration.features])
        return pa.Table.from_pylist(rows, schema)

    def _joined(self, frame: Any) -> pa.Table:
        """Feast's point-in-time join, in the order of the requests."""
        for attempt in range(3):
            job = self.feast.get_historical_features(
                entity_df=frame, features=self._service, filter_by_created_timestamp=True
            )
            try:
                return job.to_arrow().sort_by(_PLACE)
            except Exception as e:  # DuckDB reports in its own way a file that was merged while it read
                if attempt == 2 or "No files found" not in str(e) and "Cannot open file" not in str(e):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def materialize(self, begin_ms: int, end_ms: int) -> dict[str, int]:
        """Writes the newest logged row of each key, with event time in [begin, end), into the online store.

        Returns the number of rows of each view. Feast's own command writes the same, and adds an interval to its
        registry each time.
        """
        counts = {}
        for view in self.plan.columns:
            table = self.offline.newest(view, begin_ms, end_ms)
            counts[view] = table.num_rows
            for first in range(0, table.num_rows, _WRITE_ROWS):
                rows = self._packed(view, table.slice(first, _WRITE_ROWS))
                with locked(self._lock):
                    self._online.rows.write(view, rows)
        return counts

    def popular(self, limit: int, window: str = "1h") -> tuple[list[int], int]:
        """Returns the items that were shown most in a window, and the clock of event time (-1: nothing is counted).

        At most features.popular.MOST are known. Wider windows fill a list that is shorter.
        """
        return self._online.popular(window)[:limit], self._online.now_ms() or -1

    def _declared(self, columns: Mapping[str, list[Any]], users: list[int], items: list[int]) -> list[dict[str, Any]]:
        """Makes rows of the declared features from Feast's columns and the entities' keys."""
        features = self.plan.declaration.features
        none: dict[str, Any] = dict.fromkeys(f.name for f in features)
        rows = [none.copy() for _ in items]  # a copy has room for all names, so setting one is fast
        for f in features:
            values: list[Any] = {"user": users, "item": items}.get(f.view) or columns[f.name]
            if None in values:
                values = [f.default if v is None else v for v in values]
            name = f.name
            for row, value in zip(rows, map(list, values) if f.kind == "ids" else values, strict=True):
                row[name] = value
        return rows

    def _packed(self, view: str, table: pa.Table) -> dict[int, tuple[int, dict[str, Any]]]:
        """The newest row of each key, as the online store has it."""
        names = [column.name for column in self.plan.columns[view]]
        packed: dict[int, tuple[int, dict[str, Any]]] = {}
        times = pc.divide(table["event_timestamp"].cast(pa.int64()), 1000).to_pylist()
        rows = zip(*(table[name].to_pylist() for name in names), strict=True) if names else [()] * len(times)
        for key, at_ms, values in zip(table[self.plan.key(view)].to_pylist(), times, rows, strict=True):
            if key not in packed or at_ms >= packed[key][0]:
                packed[key] = at_ms, dict(zip(names, values, strict=True))
        return packed

    def _stands(self, view: str, table: pa.Table) -> list[bool]:
        """Returns of each row whether a read of its key gives it, or a row of a newer event."""
        keys = table[self.plan.key(view)].to_pylist()
        stored = dict(zip(keys, self._online.rows.read(view, keys), strict=True))
        stands = []
        for k, key in enumerate(keys):
            (at_ms, values), row = self._packed(view, table.slice(k, 1))[key], stored[key]
            of_view = row and {name: value for name, value in values.items() if name in row[1]}  # the view has grown
            stands.append(bool(row) and (row[0] > at_ms or row[1] == of_view))
        return stands


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets the environment variables that feature_repo reads, for the block only: they are the platform's settings."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _definitions() -> list[Any]:
    """Runs feature_repo/definitions.py anew, because its definitions depend on the source."""
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView

    spec = importlib.util.spec_from_file_location("feature_definitions", REPO / "definitions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kinds = (Entity, FeatureView, OnDemandFeatureView, FeatureService)
    return [value for value in vars(module).values() if isinstance(value, kinds)]


def _fingerprint(plan: Plan) -> str:
    features = {view: [f.name for f in of_view] for view, of_view in plan.features.items()}
    return json.dumps([plan.columns, features, plan.inputs, TIMES])


def _to_feast(feature: Feature, value: Any) -> Any:
    """Converts a request feature for Feast. An empty list becomes None, because Feast cannot tell its type."""
    value = feature.default if value is None else value
    return list(value) or None if feature.kind == "ids" else float(value) if feature.kind == "number" else int(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = process.Arguments("features.store", "Fill the online store from the logged rows (docs/features.md).")
    parser.add_argument("verb", choices=("materialize",), help="newest row of each key, event time in [begin, end)")
    parser.shared("source")
    parser.add_argument("--folder", required=True, type=Path, metavar="DIR", help="the feature folder")
    parser.shared("begin", "end")
    args = parser.parse_args(argv)
    return process.run(lambda: _materialize(args))


def _materialize(args: argparse.Namespace) -> None:
    begin_ms, end_ms = milliseconds("begin", args.begin), milliseconds("end", args.end)
    if end_ms <= begin_ms:
        raise InputError(f"--end is {args.end}, allowed is later than --begin {args.begin}")
    print(json.dumps(Features(args.folder, args.source).materialize(begin_ms, end_ms)))


if __name__ == "__main__":
    sys.exit(main())
