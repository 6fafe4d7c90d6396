"""The log of counts: every add that the push has committed, with the wall time at which it became readable.

    log = AddLog(folder)
    log.write(arrived_ms, clock_ms, adds)              # before the commit, under the folder's lock
    log.repair(committed_ms)                           # after a kill: drops what no commit has made readable
    columns = past(log, plan, "counters", ["item_shown_1h"], item_ids, read_ms)

`past` counts anew from the logged adds themselves, by the same queries as a read of the profile store. So it gives the
counted columns as they were readable at any time, for the offline join and for the check of logged features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.disk import replacing
from features.counted import ENTITY
from features.plan import Plan
from features.profile.query import Answer, Evaluation, Query, checked
from features.profile.rows import Rows, places
from features.profile.transaction import Adds
from streaming.slots import WINDOWS, Slots

Int64s = NDArray[np.int64]
SCHEMA = pa.schema(
    [
        ("slot", pa.uint8()),
        ("profile", pa.int64()),
        ("feature", pa.int64()),
        ("ts_ms", pa.int64()),
        ("action", pa.uint8()),
        ("count", pa.int32()),
        ("arrived", pa.int64()),
        ("clock_ms", pa.int64()),
    ]
)
"""An add, when it became readable (wall time), and the clock of event time of its commit."""
COMPACT_FILES = 200
SMALL_BYTES = 32 << 20
"""A file of this size is not merged again."""


class AddLog:
    """The files `adds/<arrived>.parquet` of a feature folder. One process writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "adds"
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, arrived_ms: int, clock_ms: int, adds: Adds) -> None:
        """Logs the adds of a commit. A commit without adds has one row of count 0, for its clock."""
        nothing, n = np.zeros(1, np.int64), len(adds.slot) or 1
        columns = {"arrived": np.full(n, arrived_ms), "clock_ms": np.full(n, clock_ms)}
        for name in SCHEMA.names[:-2]:
            columns[name] = getattr(adds, name) if len(adds.slot) else nothing
        table = pa.table([pa.array(columns[field.name]).cast(field.type) for field in SCHEMA], SCHEMA)
        self._put(self._folder / f"{arrived_ms}.parquet", table)

    def repair(self, committed_ms: int) -> None:
        """Removes the files that a killed process wrote and did not commit."""
        for file in self._files():
            if _arrived(file) > committed_ms:
                file.unlink()

    def compact(self) -> None:
        """Merges the small files if there are many. A reader may see rows twice for a moment; `_read` does not."""
        small = [file for file in sorted(self._files(), key=_arrived) if file.stat().st_size < SMALL_BYTES]
        if len(small) >= COMPACT_FILES:
            merged = pa.concat_tables([pq.read_table(file) for file in small])
            self._put(small[-1].with_name(f"{_arrived(small[-1])}-merged.parquet"), merged)
            for file in small:
                file.unlink()

    def names(self) -> list[str]:
        """The names of all files."""
        return sorted(file.name for file in self._files())

    def blank(self, name: str, cover: Callable[[Int64s, Int64s, Int64s], NDArray[np.bool_]]) -> None:
        """Takes out of a file the adds that `cover` finds, by slot, profile and time. A row of count 0 stays."""
        file = self._folder / name
        table = pq.read_table(file)
        covered = pa.array(cover(*(table[column].to_numpy() for column in ("slot", "profile", "ts_ms"))))
        if pc.any(covered).as_py():
            columns = [
                table[field.name]
                if field.name in ("arrived", "clock_ms")
                else pc.if_else(covered, pa.scalar(0, field.type), table[field.name])
                for field in SCHEMA
            ]
            self._put(file, pa.table(columns, SCHEMA))

    def commits(self) -> tuple[Int64s, Int64s]:
        """The wall times of all commits, in order, and the clock of each."""
        table = self._read(["arrived", "clock_ms"], None)
        arrived, first = np.unique(table["arrived"].to_numpy(), return_index=True)
        return arrived, table["clock_ms"].to_numpy()[first]

    def of(self, slots: Sequence[int], profiles: Sequence[int]) -> pa.Table:
        """The adds of some profiles in some slots, ordered by profile and arrival."""
        chosen = pc.field("slot").isin(list(slots)) & pc.field("profile").isin(pa.array(profiles, pa.int64()))
        table = self._read(SCHEMA.names, chosen & (pc.field("count") != 0))
        return table.sort_by([("profile", "ascending"), ("arrived", "ascending")])

    def most(self, slots: Slots, limit: int, now_ms: int) -> list[int]:
        """The items that were shown most at a time of event time.

        They are ordered by the last hour, then by the last day, the week, and all time.
        """
        place = next((k for k, slot in enumerate(slots.slots) if slot.entity == "item" and not slot.by), None)
        if place is None:
            return []
        shown = (pc.field("slot") == place) & (pc.field("action") == 0) & (pc.field("count") != 0)
        table = self._read(["profile", "ts_ms", "count"], shown)
        items, at = np.unique(table["profile"].to_numpy(), return_inverse=True)
        times, counts = table["ts_ms"].to_numpy(), table["count"].to_numpy()
        ranks = [
            np.bincount(at, np.where(times >= window.begin_ms(now_ms), counts, 0), len(items))
            for window in WINDOWS.values()
        ]
        order = np.lexsort((items, *(-rank for rank in reversed(ranks))))
        most: list[int] = items[order][:limit].tolist()
        return most

    def _read(self, columns: Sequence[str], chosen: Any) -> pa.Table:
        for attempt in range(3):
            files = list(self._files())
            merged = max((_arrived(file) for file in files if "-" in file.stem), default=-1)
            # A merged file has all rows of the small ones up to its time, which may still be there.
            once = [str(file) for file in files if "-" in file.stem or _arrived(file) > merged]
            try:
                return ds.dataset(once, SCHEMA).to_table(list(columns), chosen) if once else SCHEMA.empty_table()
            except FileNotFoundError:  # merged meanwhile
                if attempt == 2:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _files(self) -> Iterator[Path]:
        return self._folder.glob("*.parquet")

    @staticmethod
    def _put(path: Path, table: pa.Table) -> None:
        with replacing(path) as aside:
            pq.write_table(table, aside, compression="zstd")


def past(
    log: AddLog, plan: Plan, view: str, names: Sequence[str], keys: Sequence[int], at_ms: Sequence[int]
) -> dict[str, list[Any]]:
    """Columns of a counted view as they were readable: of each key at its wall time."""
    arrived, clocks = log.commits()
    entity = ENTITY[view]
    slots = [place for place, slot in enumerate(plan.slots.slots) if slot.entity == entity]
    adds = log.of(slots, sorted(set(keys)))
    columns = {name: adds[name].to_numpy() for name in SCHEMA.names}
    place = places(*(columns[name].astype(np.int64) for name in ("slot", "action", "ts_ms")))
    rows = Rows(columns["profile"], columns["feature"], place, columns["count"].astype(np.int64))
    commit = np.searchsorted(arrived, np.asarray(at_ms, np.int64), side="right") - 1
    values: dict[str, list[Any]] = {name: [None] * len(keys) for name in names}
    wanted = np.asarray(keys, np.int64)
    for number in np.unique(commit).tolist():
        at = np.flatnonzero(commit == number)
        some, owner_of = np.unique(wanted[at], return_inverse=True)
        clock_ms = max(0, int(clocks[number])) if number >= 0 else 0
        until = arrived[number] if number >= 0 else -1
        then = _Then(plan.slots, rows, columns["arrived"], until)
        found = plan.counted.read(then, view, names, some.tolist(), clock_ms)
        for name in names:
            for k, owner in zip(at.tolist(), owner_of.tolist(), strict=True):
                values[name][k] = found[name][owner]
    return values


class _Then(NamedTuple):
    """Answers queries from the adds that had arrived until a time. The owners of `rows` are profiles, in order."""

    slots: Slots
    rows: Rows
    arrived: Int64s
    until: int

    def read(self, entity: str, profiles: Sequence[int], queries: Sequence[Query], now_ms: int) -> list[Answer]:
        parts = [self._until(profile) for profile in profiles]
        owners = np.repeat(np.arange(len(parts)), [part.stop - part.start for part in parts])
        at = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        rows = self.rows.where(at)._replace(owner=owners)
        evaluation = Evaluation(rows, len(profiles), len(self.slots.actions), now_ms)
        return [evaluation.answer(checked(query, self.slots, entity)) for query in queries]

    def _until(self, profile: int) -> range:
        """The places of a profile's adds."""
        begin, end = (int(np.searchsorted(self.rows.owner, profile, side)) for side in ("left", "right"))
        return range(begin, begin + int(np.searchsorted(self.arrived[begin:end], self.until, "right")))


def _arrived(file: Path) -> int:
    """The time at which the newest rows of a file became readable, from its name."""
    return int(file.stem.split("-")[0])
