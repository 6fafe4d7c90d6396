"""The log of counts: every add that the push has committed, with the wall time at which it became readable.

    log = AddLog(folder)
    log.write(arrived_ms, clock_ms, adds)              # before the commit, under the folder's lock
    log.repair(committed_ms)                           # after a kill: drops what no commit has made readable
    columns = past(log, plan, "counters", ["item_shown_1h"], item_ids, read_ms)

`past` counts anew from the logged adds themselves, by the same queries as a read of the profile store. So it gives the
counted columns as they were readable at any time, for the offline join and for the check of logged features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.disk import replacing
from common.errors import InputError
from features.counted import ENTITY
from features.plan import Plan
from features.profile.query import Answer, Evaluation, Query, checked
from features.profile.rows import Rows, places
from features.profile.transaction import Adds
from streaming.slots import DAY_MS, WINDOWS, Slots

Int64s = NDArray[np.int64]
SCHEMA = pa.schema(
    [
        ("slot", pa.uint8()),
        ("profile", pa.int64()),
        ("feature", pa.int64()),
        ("ts_ms", pa.int64()),
        ("action", pa.uint8()),
        ("count", pa.int64()),
        ("arrived", pa.int64()),
        ("clock_ms", pa.int64()),
    ]
)
"""An add, when it became readable (wall time), and the clock of event time of its commit."""
COMPACT_FILES = 200
KEEP_MS = 30 * DAY_MS
"""The past can be read for so long. Older adds become sums when no window needs them by themselves."""
SMALL_BYTES = 32 << 20
"""A file of this size is not merged again."""


class AddLog:
    """The files `adds/<arrived>.parquet` of a feature folder; merged ones have two times. One process writes."""

    def __init__(self, folder: Path, slots: Slots) -> None:
        self._folder, self._slots = folder / "adds", slots
        self._next_sum_up = 0.0
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, arrived_ms: int, clock_ms: int, adds: Adds) -> None:
        """Logs the adds of a commit. A commit without adds has one row of count 0, for its clock."""
        self._put(self._folder / f"{arrived_ms}.parquet", self._table(arrived_ms, clock_ms, adds))

    @staticmethod
    def _table(arrived_ms: int, clock_ms: int, adds: Adds) -> pa.Table:
        nothing, n = np.zeros(1, np.int64), len(adds.slot) or 1
        columns = {"arrived": np.full(n, arrived_ms), "clock_ms": np.full(n, clock_ms)}
        for name in SCHEMA.names[:-2]:
            columns[name] = getattr(adds, name) if len(adds.slot) else nothing
        return pa.table([pa.array(columns[field.name]).cast(field.type) for field in SCHEMA], SCHEMA)

    def repair(self, committed_ms: int) -> None:
        """Removes the files that a killed process wrote and did not commit, and those that it merged."""
        current = set(self._files())
        for file in self._folder.glob("*.parquet"):
            if file not in current or _span(file)[1] > committed_ms:
                file.unlink()

    def compact(self) -> None:
        """Merges the small files if there are many, and sums up what is old, once an hour."""
        small = [file for file in self._files() if file.stat().st_size < SMALL_BYTES]
        if len(small) >= COMPACT_FILES:
            self._replace(small, pa.concat_tables([pq.read_table(file).cast(SCHEMA) for file in small]))
        if time.monotonic() >= self._next_sum_up:
            self._next_sum_up = time.monotonic() + 3600
            self.sum_up(time.time_ns() // 1_000_000 - KEEP_MS)

    def sum_up(self, horizon_ms: int) -> None:
        """Replaces files by sums, one a count, if no read of `horizon_ms` or later needs their single adds.

        So a count of the window `all` stays right. The counts of slots without that window go.
        """
        newest_ms = max((_clock(file) for file in self._files() if _span(file)[1] <= horizon_ms), default=-1)
        old = [f for f in self._files() if _span(f)[1] <= horizon_ms and _clock(f) < _oldest_needed(newest_ms)]
        if not old or [_span(f)[0] for f in old] == [0]:
            return
        clock_ms, kept = max(map(_clock, old)), [k for k, slot in enumerate(self._slots.slots) if "all" in slot.windows]
        key = ["slot", "profile", "feature", "action"]
        sums = SCHEMA.empty_table().select([*key, "ts_ms", "count"])
        for file in old:
            adds = pq.read_table(file, filters=pc.field("slot").isin(kept) & (pc.field("count") != 0)).cast(SCHEMA)
            both = pa.concat_tables([sums, adds.select(sums.schema.names)])
            sums = both.group_by(key).aggregate([("ts_ms", "max"), ("count", "sum")])
            sums = sums.rename_columns([*key, "ts_ms", "count"])
        columns = {name: sums[name].to_numpy() for name in sums.schema.names}
        self._replace(old, self._table(_span(old[-1])[1], clock_ms, Adds(**columns)), begin_ms=0)

    def _replace(self, files: Sequence[Path], table: pa.Table, begin_ms: int | None = None) -> None:
        """Puts one file in place of some that follow each other."""
        first_ms, last_ms = _span(files[0])[0] if begin_ms is None else begin_ms, _span(files[-1])[1]
        self._put(self._folder / f"{last_ms}-{first_ms}.parquet", table)
        for file in files:
            file.unlink()

    def names(self) -> list[str]:
        """The names of all files."""
        return [file.name for file in self._files()]

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

    def check(self, arrived: Int64s, clocks: Int64s, commit: Int64s, at_ms: Sequence[int]) -> None:
        """Raises InputError for a time whose commit needs single adds that are summed up."""
        files = self._files()
        if files and _span(files[0])[0] == 0:
            known = np.array([_oldest_needed(int(clock)) > clocks[0] for clock in (-1, *clocks)])
            if len(wrong := np.flatnonzero(~known[commit + 1])):
                first = f"{arrived[known[1:].argmax()]} or later" if known.any() else "none"
                allowed = f"allowed is {first}, since older adds are summed up"
                raise InputError(f"{self._folder}: read_ms is {at_ms[wrong[0]]}; {allowed}")

    def of(self, slots: Sequence[int], profiles: Sequence[int]) -> pa.Table:
        """The adds of some profiles in some slots, ordered by profile and arrival."""
        chosen = pc.field("slot").isin(list(slots)) & pc.field("profile").isin(pa.array(profiles, pa.int64()))
        table = self._read(SCHEMA.names, chosen & (pc.field("count") != 0))
        return table.sort_by([("profile", "ascending"), ("arrived", "ascending")])

    def shown(self, place: int, until_ms: int) -> tuple[Int64s, Int64s, Int64s]:
        """Profiles, times and counts of the impressions of a slot that were readable at a wall time."""
        shown = (pc.field("slot") == place) & (pc.field("action") == 0) & (pc.field("count") != 0)
        table = self._read(["profile", "ts_ms", "count"], shown & (pc.field("arrived") <= until_ms))
        profiles, times, counts = (table[name].to_numpy() for name in table.column_names)
        return profiles, times, counts

    def _read(self, columns: Sequence[str], chosen: Any) -> pa.Table:
        for attempt in range(3):
            files = [str(file) for file in self._files()]
            try:
                return ds.dataset(files, SCHEMA).to_table(list(columns), chosen) if files else SCHEMA.empty_table()
            except FileNotFoundError:  # merged meanwhile
                if attempt == 2:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _files(self) -> list[Path]:
        """The files in the order of their commits. One whose commits are in a merged file is not among them."""
        files: list[Path] = []
        for file in sorted(self._folder.glob("*.parquet"), key=lambda file: (_span(file)[0], -_span(file)[1])):
            if not files or _span(file)[1] > _span(files[-1])[1]:
                files.append(file)
        return files

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
    log.check(arrived, clocks, commit, at_ms)
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


def _span(file: Path) -> tuple[int, int]:
    """The times at which the oldest and the newest commit of a file became readable, from its name."""
    newest, _, oldest = file.stem.partition("-")
    return int(oldest) if oldest.isdigit() else int(newest), int(newest)


def _clock(file: Path) -> int:
    """The clock of the newest commit of a file."""
    metadata, column = pq.read_metadata(file), SCHEMA.names.index("clock_ms")
    return int(max(metadata.row_group(k).column(column).statistics.max for k in range(metadata.num_row_groups)))


def _oldest_needed(clock_ms: int) -> int:
    """The oldest event time that a finite window holds at a clock."""
    return min(window.begin_ms(clock_ms) for window in WINDOWS.values() if window.ms)
