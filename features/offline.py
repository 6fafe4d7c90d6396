"""The offline store's files: every row that was written into a view, as Parquet in `offline/<view>/<arrived>.parquet`.

    offline = Offline(folder, plan_of(source))
    offline.log("video", table, arrived_ms)         # under the folder's lock
    offline.newest("video")                         # the row of the newest event of each key

The views `activity` and `counters` have no rows here, only an empty file (features/adds.py logs what they show).
Feast's definitions name the same files (feature_repo/definitions.py). A file that nobody can read any more, as after a
fault of the disk, is set aside as `<name>.broken`: the others are read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common import process
from common.disk import locked, replacing
from features.plan import TS, Plan
from streaming.slots import DAY_MS

ARROW = {"int": pa.int64(), "ints": pa.list_(pa.int64()), "number": pa.float64()}
STAMP = pa.timestamp("us", "UTC")
"""Microseconds: DuckDB reads nanoseconds as a type that Feast cannot cast."""
TIMES = {"profile": "_profile_times", "video": "_video_times"}
"""View -> the column with the time of each attribute (features/attributes.py). Feast does not know it."""
COMPACT_FILES = 200
T = TypeVar("T")

log = process.logger("features")


class Offline:
    """The logged rows of all views of a plan, in a feature folder. `lock` is the folder's lock file."""

    def __init__(self, folder: Path, plan: Plan, lock: Path) -> None:
        self._folder, self._plan, self._lock = folder / "offline", plan, lock
        for view in plan.columns:
            (self._folder / view).mkdir(parents=True, exist_ok=True)

    def table(self, view: str, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
        """Makes a table of a view's rows: the entity's key, the columns, the event time; `arrived` is set by `log`."""
        schema = self._schema(view)
        if not columns:
            return schema.empty_table()
        stamps = pa.array([ms * 1000 for ms in columns[TS]], pa.int64()).cast(STAMP)
        filled = {**columns, "event_timestamp": stamps, "arrived": stamps}
        if view in TIMES:
            filled.setdefault(TIMES[view], [None] * len(stamps))
        return pa.table([pa.array(filled[f.name], f.type) for f in schema], schema)

    def log(self, view: str, table: pa.Table, arrived_ms: int) -> None:
        """Writes rows that become readable at `arrived_ms`. The caller holds the folder's lock."""
        stamp = pa.array([arrived_ms * 1000] * table.num_rows, pa.int64()).cast(STAMP)
        table = table.set_column(table.schema.get_field_index("arrived"), pa.field("arrived", STAMP), stamp)
        self.write(self._folder / view / f"{arrived_ms}.parquet", table)

    @staticmethod
    def write(path: Path, table: pa.Table) -> None:
        with replacing(path) as aside:
            pq.write_table(table, aside)

    def fill(self) -> None:
        """Gives each view a file at least: DuckDB fails without one. The caller holds the folder's lock."""
        for view in self._plan.columns:
            if not any(self.files(view)):
                self.log(view, self.table(view, {}), 0)

    def grow(self) -> None:
        """Gives all rows the columns that their view has now; null where they lack one. The caller holds the lock."""
        for view in self._plan.columns:
            schema = self._schema(view)
            for file in self.files(view):
                if _is_broken(file) or pq.read_schema(file).names == schema.names:
                    continue
                table = pq.read_table(file)
                for field in (f for f in schema if f.name not in table.schema.names):
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
                self.write(file, table.select(schema.names))

    def unlogged(self, view: str, rows: pa.Table) -> pa.Table:
        """The rows of a source's table that no row of the view equals, by time."""
        names = ", ".join(f'"{name}"' for name in (self._plan.key(view), *(c.name for c in self._plan.columns[view])))
        logged = f"SELECT {names}, epoch_ms(event_timestamp) FROM read_parquet(?)"
        return self._query(f"SELECT {names}, {TS} FROM rows EXCEPT {logged} ORDER BY {TS}", view, rows=rows)

    def files(self, view: str) -> Iterator[Path]:
        return (self._folder / view).glob("*.parquet")

    def newest(
        self, view: str, begin_ms: int = 0, end_ms: int = 10**5 * DAY_MS, keys: Iterable[int] | None = None
    ) -> pa.Table:
        """Reads the logged row of the newest event in [begin, end) of each key of a view (None: of all its keys)."""
        key, order = self._plan.key(view), "event_timestamp DESC, arrived DESC"
        among = "" if keys is None else f" AND {key} IN (SELECT unnest(?))"
        rows = self._query(
            f"SELECT * EXCLUDE (_place) FROM (SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY {order})"
            " AS _place FROM read_parquet(?) WHERE epoch_ms(event_timestamp) >= ? AND epoch_ms(event_timestamp) < ?"
            f"{among})"
            f" WHERE _place = 1 ORDER BY {key}",
            view, begin_ms, end_ms, *(() if keys is None else (list(keys),)),
        )  # fmt: skip
        return rows.cast(self._schema(view))

    def forget(self, view: str, keys: Iterable[int]) -> None:
        """Removes all rows of keys but the newest one of each, which is readable already."""
        newest = self.newest(view, keys=keys).select([self._plan.key(view), "arrived"])
        for file in self.files(view):
            table = pq.read_table(file)
            place = pc.index_in(table[self._plan.key(view)], newest[self._plan.key(view)])
            older = pc.fill_null(pc.less(table["arrived"], newest["arrived"].take(place)), False)
            if pc.any(older).as_py():
                with locked(self._lock):
                    self.write(file, table.filter(pc.invert(older)))

    def arrivals(self, view: str) -> dict[int, NDArray[np.int64]]:
        """Key -> the wall times (ms) at which its rows became readable, in order."""
        key = self._plan.key(view)
        columns = [key, "arrived"]
        rows = self.unbroken(lambda: pa.concat_tables([pq.read_table(p, columns=columns) for p in self.files(view)]))
        times: dict[int, list[int]] = {}
        at = pc.divide(rows["arrived"].cast(pa.int64()), 1000).to_pylist()
        for value, ms in zip(rows[key].to_pylist(), at, strict=True):
            times.setdefault(value, []).append(ms)
        return {value: np.sort(np.array(ms, np.int64)) for value, ms in times.items()}

    def compact(self) -> None:
        """Merges the small files of each view that has many."""
        for view in self._plan.columns:
            self.unbroken(lambda view=view: self._compact(view))  # type: ignore[misc]

    def _compact(self, view: str) -> None:
        files = sorted(self.files(view), key=arrived)
        if len(files) < COMPACT_FILES:
            return
        # The merged file appears first. A reader may see rows twice for a moment, which changes no result.
        merged = files[-1].with_name(f"{arrived(files[-1])}-merged.parquet")
        self.write(merged, pa.concat_tables([pq.read_table(file) for file in files]))
        for file in files:
            file.unlink()

    def unbroken(self, read: Callable[[], T]) -> T:
        """Calls `read`. If that fails and a file is broken, sets the file aside and calls `read` again."""
        try:
            return read()
        except Exception:  # pyarrow, DuckDB and Feast report a broken file each in its own way
            if not self._set_aside():
                raise
            return read()

    def _set_aside(self) -> bool:
        """Renames the files that nobody can read, and returns whether there were any."""
        broken = [file for view in self._plan.columns for file in self.files(view) if _is_broken(file)]
        with locked(self._lock):
            for file in broken:
                file.rename(file.with_name(f"{file.name}.broken"))
                log.warning("%s is broken: set aside as %s.broken, its rows are missing", file, file.name)
            self.fill()
        return bool(broken)

    def _query(self, sql: str, view: str, *parameters: Any, rows: pa.Table | None = None) -> pa.Table:
        """Runs SQL, whose first parameter is the files of a view, with a table `rows` beside them."""
        import duckdb

        def run() -> pa.Table:
            # DuckDB's default connection is shared by the whole process.
            with duckdb.connect() as connection:
                if rows is not None:
                    connection.register("rows", rows)
                return connection.execute(sql, [str(self._folder / view / "*.parquet"), *parameters]).to_arrow_table()

        return self.unbroken(run)

    def _schema(self, view: str) -> pa.Schema:
        columns = [(c.name, ARROW[c.kind]) for c in self._plan.columns[view]]
        if view in TIMES:
            columns.append((TIMES[view], ARROW["ints"]))
        return pa.schema([(self._plan.key(view), pa.int64()), *columns, ("event_timestamp", STAMP), ("arrived", STAMP)])


def arrived(file: Path) -> int:
    """The time at which the newest rows of a file became readable, from its name."""
    return int(file.stem.split("-")[0])


def _is_broken(file: Path) -> bool:
    try:
        pq.read_table(file)
    except FileNotFoundError:  # merged meanwhile
        return False
    except (OSError, pa.ArrowException):
        return True
    return False
