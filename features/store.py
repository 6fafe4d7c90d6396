"""The feature store of one folder: Feast's registry, online and offline store, and how a source's rows get in and out.

    store = Features("var/local/features", "simulator?seed=7")
    rows, read_ms = store.read(user_id, item_ids, ts_ms, given)      # the declared features, for serving
    table = store.historical(asked)                                  # the same as they were readable at read_ms

A write is one step for readers: it holds the folder's lock while rows of all views become readable, and a read holds it
shared. Each write is logged first, as Parquet with the event time and the time it became readable (`arrived`), strictly
after every read before and at or before every read after. docs/features.md has the traps.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.extras import require
from features.plan import EVENT_MS, GIVEN, SERVICE, TS, Plan, plan_of
from streaming.declaration import Feature
from streaming.views import DAY_MS

REPO = Path(__file__).resolve().parents[1] / "feature_repo"
ARROW = {"int": pa.int64(), "ints": pa.list_(pa.int64()), "number": pa.float64()}
KINDS = {"id": ARROW["int"], "ids": ARROW["ints"], "number": ARROW["number"]}
STAMP = pa.timestamp("us", "UTC")
"""Microseconds: DuckDB reads nanoseconds as a type that Feast cannot cast."""
_COMPACT_FILES = 200
_WRITE_ROWS = 2000

log = logging.getLogger("features")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Features:
    """The store in `folder`, of the source named `source`. Opening it applies feature_repo's definitions if need be.

    `yaml` says which stores: None is FEAST_FS_YAML_FILE_PATH, else feature_repo/feature_store.yaml.
    """

    def __init__(self, folder: Path | str, source: str, yaml: Path | None = None) -> None:
        self.folder, self.source = Path(folder).resolve(), source
        self.plan: Plan = plan_of(source)
        self.folder.mkdir(parents=True, exist_ok=True)
        for view in self.plan.columns:
            (self.folder / "offline" / view).mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        with _environment(MINUTEHAND_FEATURES=str(self.folder), MINUTEHAND_SOURCE=source):
            self.feast = self._open(yaml)
        self._service = self.feast.get_feature_service(SERVICE)
        self._views = {name: self.feast.get_feature_view(name) for name in self.plan.columns}

    def _open(self, yaml: Path | None) -> Any:
        """Feast's store, with the definitions of this source applied."""
        require("feast", "the feature store is Feast's")
        os.environ.setdefault("FEAST_USAGE", "False")
        from feast import FeatureStore
        from feast.repo_config import load_repo_config

        given = os.environ.get("FEAST_FS_YAML_FILE_PATH")
        file = yaml or (Path(given) if given else REPO / "feature_store.yaml")
        store = FeatureStore(config=load_repo_config(REPO, file))
        applied, wanted = self.folder / "applied.json", {"source": self.source, "plan": _fingerprint(self.plan)}
        with self._locked(fcntl.LOCK_EX):
            # A registry in a database may be lost without the folder.
            known = applied.is_file() and json.loads(applied.read_text()) == wanted and store.list_feature_services()
            if not known:
                for view in self.plan.columns:  # DuckDB wants a file to be there
                    if not any(self._parts(view)):
                        self._log(view, self._table(view, {}), 0)
                with warnings.catch_warnings():  # on-demand views are "experimental"; we know
                    warnings.simplefilter("ignore", RuntimeWarning)
                    store.apply(_definitions())
                applied.write_text(json.dumps(wanted))
        return store

    def read(
        self, user_id: int, item_ids: Sequence[int], ts_ms: Sequence[int], given: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], int]:
        """The declared features of a user and each of some items, and when they were read (wall clock, ms).

        `ts_ms` and `given` are each row's time of request and request features; a feature that is absent, and what no
        view knows, takes its default.
        """
        rows = []
        for item_id, at_ms, features in zip(item_ids, ts_ms, given, strict=True):
            row = {self.plan.user_key: user_id, self.plan.item_key: item_id, TS: at_ms}
            for f in self.plan.features["request"]:
                row[GIVEN + f.name] = _given(f, features.get(f.name))
            rows.append(row)
        with self._locked(fcntl.LOCK_SH):
            read_ms = now_ms()
            found = self.feast.get_online_features(features=self._service, entity_rows=rows).to_dict()
        return self._declared(found, [user_id] * len(rows), list(item_ids)), read_ms

    def write(self, rows: Mapping[str, Mapping[str, Sequence[Any]]]) -> int:
        """Rows of views: logged, then readable, all at once; returns when (wall clock, ms).

        Columns of `rows[view]` are the entity's key, the view's columns and `ts_ms`, the event time, where the view
        has no column of it. An older event than a key's stored one is logged and changes nothing online.
        """
        tables = {view: self._table(view, columns) for view, columns in rows.items()}
        tables = {view: table for view, table in tables.items() if table.num_rows}
        if not tables:
            return now_ms()
        prepared = {view: self._protos(view, table) for view, table in tables.items()}
        with self._locked(fcntl.LOCK_EX):
            # The next millisecond is waited for: a read of this one came before, a read of that one comes after.
            arrived_ms = now_ms() + 1
            for view, table in tables.items():
                self._log(view, table, arrived_ms)
            for view, protos in prepared.items():
                self._online(view, protos, arrived_ms)
            while now_ms() < arrived_ms:
                time.sleep(0.0002)
        return arrived_ms

    def repair(self, committed_ms: int) -> None:
        """Takes what a killed write logged and nobody could read out of the counted views' logs.

        The events behind it, later than the pusher's last commit (wall clock), are counted again and pushed then;
        readers of the meantime saw the row before. Older rows stay: an online store that lost them is filled from here.
        """
        with self._locked(fcntl.LOCK_EX):
            for view in EVENT_MS:
                newest = max(self._parts(view), key=_arrived, default=None)
                if newest is None or _arrived(newest) <= committed_ms:
                    continue
                table = pq.read_table(newest)
                last = pc.equal(table["arrived"], pc.max(table["arrived"])).to_numpy()
                stands = np.array(self._stands(view, self._protos(view, table)))
                if (last & ~stands).any():
                    self._keep(newest, table.filter(pa.array(~last | stands)))

    def historical(self, asked: pa.Table) -> pa.Table:
        """The declared features as they were readable: a row an asked one, in the same order.

        `asked` has user_id, item_id, ts_ms (of the request), read_ms (wall) and the request's features (absent:
        default).
        """
        n = asked.num_rows
        columns = {
            "place": pa.array(np.arange(n)),
            self.plan.user_key: asked["user_id"],
            self.plan.item_key: asked["item_id"],
            TS: asked[TS],
            "event_timestamp": pc.multiply(asked["read_ms"], 1000).cast(STAMP),
        }
        for f in self.plan.features["request"]:
            values = asked[f.name].to_pylist() if f.name in asked.column_names else [None] * n
            columns[GIVEN + f.name] = pa.array([_given(f, v) for v in values], KINDS[f.kind])
        frame = pa.table(columns).to_pandas()
        for attempt in range(3):
            job = self.feast.get_historical_features(
                entity_df=frame, features=self._service, filter_by_created_timestamp=True
            )
            try:
                found = job.to_arrow().sort_by("place")
                break
            except Exception as e:  # DuckDB's own errors: a part that was merged while it was read
                if attempt == 2 or "No files found" not in str(e) and "Cannot open file" not in str(e):
                    raise
        if found.num_rows != n or found["place"].to_pylist() != list(range(n)):
            raise RuntimeError(f"feature store: {n} rows were asked for, {found.num_rows} came back")
        rows = self._declared(found.to_pydict(), asked["user_id"].to_pylist(), asked["item_id"].to_pylist())
        schema = pa.schema([(f.name, KINDS[f.kind]) for f in self.plan.declaration.features])
        return pa.Table.from_pylist(rows, schema)

    def materialize(self, begin_ms: int, end_ms: int) -> dict[str, int]:
        """The newest logged row of each key with event time in [begin, end) into the online store; rows of each view.

        Feast's own would add an interval to its registry each time; what it would write is the same.
        """
        counts = {}
        for view in self.plan.columns:
            table = self.newest(view, begin_ms, end_ms)
            counts[view] = table.num_rows
            for first in range(0, table.num_rows, _WRITE_ROWS):
                protos = self._protos(view, table.slice(first, _WRITE_ROWS))
                with self._locked(fcntl.LOCK_EX):
                    self._online(view, protos, now_ms())
        return counts

    def newest(self, view: str, begin_ms: int = 0, end_ms: int = 10**5 * DAY_MS) -> pa.Table:
        """The logged row of the newest event of each key of a view, of events in [begin, end)."""
        import duckdb

        key, files = self.plan.key(view), str(self.folder / "offline" / view / "*.parquet")
        order = "event_timestamp DESC, arrived DESC"
        # On a connection of its own: DuckDB's default one is shared by the whole process.
        with duckdb.connect() as connection:
            found = connection.execute(
                f"SELECT * EXCLUDE (place) FROM (SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY {order})"
                " AS place FROM read_parquet(?) WHERE epoch_ms(event_timestamp) >= ? AND epoch_ms(event_timestamp) < ?)"
                f" WHERE place = 1 ORDER BY {key}",
                [files, begin_ms, end_ms],
            ).to_arrow_table()
        return found.cast(self._schema(view))

    def arrivals(self, view: str) -> dict[int, NDArray[np.int64]]:
        """Key -> when its rows became readable (wall clock, ms), in order."""
        key = self.plan.key(view)
        parts = [pq.read_table(path, columns=[key, "arrived"]) for path in self._parts(view)]
        found: dict[int, list[int]] = {}
        for part in parts:
            at = pc.divide(part["arrived"].cast(pa.int64()), 1000).to_pylist()
            for value, ms in zip(part[key].to_pylist(), at, strict=True):
                found.setdefault(value, []).append(ms)
        return {value: np.sort(np.array(ms, np.int64)) for value, ms in found.items()}

    def popular(self, limit: int) -> tuple[list[int], int]:
        """The items most shown in the last hour of the counters' event time, and that time (-1: nothing is counted).

        Where fewer were, the day, the week and all time go on.
        """
        table = self.newest("counters")
        if not table.num_rows:
            return [], -1
        now = pc.max(table["item_event_ms"]).as_py()
        # A row is anew when something leaves a window, so what an old row says of its windows still holds.
        order = [(f"item_shown_{window}", "descending") for window in ("1h", "1d", "7d")]
        table = table.sort_by([*order, ("item_shown", "descending"), (self.plan.item_key, "ascending")])
        return table[self.plan.item_key][:limit].to_pylist(), now

    def compact(self) -> None:
        """Merges a view's small files into one when they are many."""
        for view in self.plan.columns:
            parts = sorted(self._parts(view), key=_arrived)
            if len(parts) < _COMPACT_FILES:
                continue
            # Written aside first: for a moment a reader sees rows twice, which says the same, but never not at all.
            merged = parts[-1].with_name(f"{_arrived(parts[-1])}-merged.parquet")
            self._keep(merged, pa.concat_tables([pq.read_table(p) for p in parts]))
            for part in parts:
                part.unlink()

    def close(self) -> None:
        os.close(self._lock)

    def _declared(self, found: Mapping[str, list[Any]], users: list[int], items: list[int]) -> list[dict[str, Any]]:
        columns: dict[str, list[Any]] = {}
        for f in self.plan.declaration.features:
            values = {"user": users, "item": items}.get(f.view) or found[f.name]
            columns[f.name] = [_plain(f.default if v is None else v) for v in values]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _schema(self, view: str) -> pa.Schema:
        columns = [(c.name, ARROW[c.kind]) for c in self.plan.columns[view]]
        return pa.schema([(self.plan.key(view), pa.int64()), *columns, ("event_timestamp", STAMP), ("arrived", STAMP)])

    def _table(self, view: str, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
        schema = self._schema(view)
        if not columns:
            return schema.empty_table()
        at = columns[EVENT_MS[view]] if view in EVENT_MS else columns[TS]
        stamps = pa.array([ms * 1000 for ms in at], pa.int64()).cast(STAMP)
        filled = {**columns, "event_timestamp": stamps, "arrived": stamps}
        return pa.table([pa.array(filled[f.name], f.type) for f in schema], schema)

    def _log(self, view: str, table: pa.Table, arrived_ms: int) -> None:
        stamp = pa.array([arrived_ms * 1000] * table.num_rows, pa.int64()).cast(STAMP)
        table = table.set_column(table.schema.get_field_index("arrived"), pa.field("arrived", STAMP), stamp)
        self._keep(self.folder / "offline" / view / f"{arrived_ms}.parquet", table)

    @staticmethod
    def _keep(path: Path, table: pa.Table) -> None:
        aside = path.with_suffix(".new")
        pq.write_table(table, aside)
        os.replace(aside, path)

    def _parts(self, view: str) -> Iterator[Path]:
        return (self.folder / "offline" / view).glob("*.parquet")

    def _protos(self, view: str, table: pa.Table) -> list[Any]:
        """Feast's entity key, value protos and event time of each row, to be written by its provider.

        FeatureStore.write_to_online_store takes a pandas frame instead. That would turn a null integer into a float,
        drop a table of nulls with a warning, and convert the rows while readers wait for the lock.
        """
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.type_map import python_values_to_proto_values

        def protos(field: Any) -> list[Any]:
            values = table[field.name].to_numpy()
            return python_values_to_proto_values(values, field.dtype.to_value_type())

        (key,) = self._views[view].entity_columns
        entities = [EntityKey(join_keys=[key.name], entity_values=[value]) for value in protos(key)]
        names = [field.name for field in self._views[view].features]
        columns = [protos(field) for field in self._views[view].features]
        values = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return list(zip(entities, values, table["event_timestamp"].to_pylist(), strict=True))

    def _online(self, view: str, protos: list[Any], arrived_ms: int) -> None:
        arrived = datetime.fromtimestamp(arrived_ms / 1000, UTC)
        rows = [(*row, arrived) for row in protos]
        self.feast.provider.online_write_batch(self.feast.config, self._views[view], rows, None)

    def _stands(self, view: str, protos: list[Any]) -> list[bool]:
        """Whether each row, or one of a newer event, is what is read of its key."""
        column = EVENT_MS[view]
        found = self.feast.provider.online_read(
            self.feast.config, self._views[view], [entity for entity, *_ in protos], list(protos[0][1])
        )
        return [
            stored is not None and (stored[column].int64_val > values[column].int64_val or stored == values)
            for (_, stored), (_, values, *_) in zip(found, protos, strict=True)
        ]

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        fcntl.flock(self._lock, how)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


@contextmanager
def _environment(**given: str) -> Iterator[None]:
    """What feature_repo reads, for as long as it does: the same names are the platform's settings."""
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _definitions() -> list[Any]:
    """What feature_repo/definitions.py defines, read anew: it says another thing for another source."""
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView

    spec = importlib.util.spec_from_file_location("feature_definitions", REPO / "definitions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kinds = (Entity, FeatureView, OnDemandFeatureView, FeatureService)
    return [value for value in vars(module).values() if isinstance(value, kinds)]


def _fingerprint(plan: Plan) -> str:
    return json.dumps([plan.columns, {view: [f.name for f in features] for view, features in plan.features.items()}])


def _arrived(path: Path) -> int:
    return int(path.stem.split("-")[0])


def _given(feature: Feature, value: Any) -> Any:
    """A request feature on its way in. Feast cannot tell the type of an empty list: it goes as none."""
    value = feature.default if value is None else value
    return list(value) or None if feature.kind == "ids" else float(value) if feature.kind == "number" else int(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "features.store", description="Fill the online store from the logged rows (docs/features.md)."
    )
    parser.add_argument("verb", choices=("materialize",), help="newest row of each key, event time in [begin, end)")
    parser.add_argument("--source", required=True, metavar="S", help="kuairand, simulator?seed=7, a module, a .py file")
    parser.add_argument("--folder", required=True, type=Path, metavar="DIR", help="the feature folder")
    parser.add_argument("--begin", type=int, required=True, metavar="MS", help="event time, ms")
    parser.add_argument("--end", type=int, required=True, metavar="MS", help="event time, ms; not included")
    args = parser.parse_args(argv)
    if args.end <= args.begin:
        parser.error(f"--end is {args.end}, allowed is later than --begin {args.begin}")
    print(json.dumps(Features(args.folder, args.source).materialize(args.begin, args.end)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
