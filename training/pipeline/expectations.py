"""The contracts of a day, as Great Expectations suites: one each for impressions, examples, features and deltas.

    name, frame, expectations = examples(table, declaration, interval, reference)

A contract turns a table into a frame of plain columns and lists what is expected of them. Types, times, ids and enums
have the same expectations on any day. Rates and means are judged against a reference, the statistics of the last day
that passed. So no number of any data set is written here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from common.interval import Interval
from streaming.declaration import RESERVED_IDS, Declaration

Statistics = dict[str, tuple[float, float, int]]
"""Column -> mean, standard deviation and number of its values in a day."""
JUDGED_ROWS = 1000
"""A day with fewer examples may have no positive of the judged task."""


@dataclass(frozen=True)
class Tolerance:
    """How far a day may be from its reference.

    A rate may differ by a factor. A mean may differ by standard deviations of its values, or by `least` (a number is of
    about unit scale). Both may differ by `sigmas` standard errors more, so that a day is not refused for being small.
    """

    ratio: float = 1.5
    deviations: float = 1.0
    least: float = 0.1
    sigmas: float = 4.0

    def of_rate(self, rate: float, n: int) -> tuple[float, float]:
        error = self.sigmas * math.sqrt(rate * (1 - rate) / n) if n else 1.0
        return max(0.0, rate / self.ratio - error), min(1.0, rate * self.ratio + error)

    def of_mean(self, mean: float, deviation: float, n: int) -> tuple[float, float]:
        error = self.sigmas * deviation / math.sqrt(max(n, 1))
        room = max(deviation * self.deviations, self.least, 1e-6 * abs(mean)) + error
        return mean - room, mean + room


class Contract(NamedTuple):
    """The name of a suite, the frame that it judges, and its expectations."""

    name: str
    frame: pd.DataFrame
    expectations: list[Any]


def impressions(table: pa.Table, declaration: Declaration, interval: Interval) -> Contract:
    """The contract of an interval's impressions, as archived."""
    gxe = _gxe()
    frame = _plain(table)
    expected = _present(("impression_id", "user_id", "item_id", "ts_ms"))
    # The join ignores an impression that is sent again, so a few of them do no harm.
    expected.append(gxe.ExpectColumnValuesToBeUnique(column="impression_id", mostly=0.99))
    expected.append(_within("ts_ms", interval.begin_ms, interval.end_ms - 1))
    expected += [_within(f"score_{task}", 0, 1) for task in declaration.tasks]
    expected += [_not_reserved(column) for column in ("user_id", "item_id", *_ids(declaration))]
    return Contract("impressions", frame, expected)


def examples(
    table: pa.Table,
    declaration: Declaration,
    interval: Interval,
    reference: Statistics | None = None,
    tolerance: Tolerance | None = None,
) -> Contract:
    """The contract of an interval's examples, as archived, with rates and means near the reference."""
    gxe = _gxe()
    frame, tolerance, reference = _plain(table), tolerance or Tolerance(), reference or {}
    label = frame[[f"label_{task}" for task in declaration.tasks]].to_numpy(np.float64)
    weight = frame[[f"weight_{task}" for task in declaration.tasks]].to_numpy(np.float64)
    for k, task in enumerate(declaration.tasks):
        frame[f"rate_{task}"] = np.where(weight[:, k] > 0, label[:, k], np.nan)
    # The identity of a record: its impression, its kind, and the task of a positive.
    task_of = np.where(frame["kind"] == "positive", np.nan_to_num(label).argmax(axis=1), -1)
    frame["pair"] = frame["impression_id"].astype(str) + " " + frame["kind"].astype(str) + " " + task_of.astype(str)
    frame["waited_ms"] = frame["event_ms"] - frame["ts_ms"]

    expected = _present(("impression_id", "user_id", "item_id", "ts_ms", "event_ms", "pi"))
    expected.append(gxe.ExpectColumnValuesToBeInSet(column="kind", value_set=["negative", "positive"]))
    expected.append(gxe.ExpectColumnValuesToBeUnique(column="pair"))
    expected.append(_within("event_ms", interval.begin_ms, interval.end_ms - 1))
    expected.append(_within("waited_ms", 0, declaration.window_ms))
    expected.append(gxe.ExpectColumnValuesToBeBetween(column="pi", min_value=0, strict_min=True, max_value=1))
    for k, task in enumerate(declaration.tasks):
        expected.append(gxe.ExpectColumnValuesToBeInSet(column=f"label_{task}", value_set=[0.0, 1.0]))
        expected.append(gxe.ExpectColumnValuesToBeBetween(column=f"weight_{task}", min_value=0))
        low, high = 0.0, 1.0
        if f"rate_{task}" in reference:
            mean, _, n = reference[f"rate_{task}"]
            low, high = tolerance.of_rate(mean, min(n, int((weight[:, k] > 0).sum())))
        strict = task == declaration.judged and len(frame) >= JUDGED_ROWS
        if not (weight[:, k] > 0).any():
            continue  # no example is about the task: there is no evidence against its rate
        expected.append(
            gxe.ExpectColumnMeanToBeBetween(
                column=f"rate_{task}", min_value=low, max_value=high, strict_min=strict, strict_max=strict
            )
        )
    expected += [_not_reserved(column) for column in _ids(declaration)]
    expected += _means(frame, declaration, reference, tolerance)
    return Contract("examples", frame, expected)


def features(logged: pa.Table, same: Mapping[str, float], declaration: Declaration, least: float = 0.999) -> Contract:
    """The contract of logged features: none is missing, all are finite, and they equal the store's.

    `same`: the share of each feature's values that equal those of the store at that time.
    """
    gxe = _gxe()
    frame = _plain(logged)
    columns = [f"feature_{f.name}" for f in declaration.features if f.kind != "ids"]
    expected = _present(columns)
    for f in declaration.features:
        if f.kind == "number":
            limit = float(np.finfo(np.float32).max)
            expected.append(_within(f"feature_{f.name}", -limit, limit))
    for name, share in same.items():
        frame[f"same_{name}"] = share
        expected.append(gxe.ExpectColumnMeanToBeBetween(column=f"same_{name}", min_value=least, max_value=1))
    return Contract("features", frame, expected)


def deltas(manifests: Sequence[Any], most_rows: int | None = None) -> Contract:
    """The contract of a lineage's deltas, by their manifests in order: no gap, time moves on, sizes are possible."""
    gxe = _gxe()
    frame = pd.DataFrame(
        {
            "seq": [m.seq for m in manifests],
            "step": np.diff([m.seq for m in manifests], prepend=manifests[0].seq - 1) if manifests else [],
            "learned_until_ms": [m.learned_until_ms for m in manifests],
            "moved_ms": np.diff([m.learned_until_ms for m in manifests], prepend=-1)[: len(manifests)],
            "rows": [sum(info.rows for info in m.tables.values()) for m in manifests],
            "bytes": [m.bytes for m in manifests],
        }
    )
    frame.loc[:0, "moved_ms"] = 0  # nothing is before the first
    expected = _present(tuple(frame.columns))
    expected.append(gxe.ExpectColumnValuesToBeInSet(column="step", value_set=[1]))
    expected.append(gxe.ExpectColumnValuesToBeBetween(column="moved_ms", min_value=0))
    expected.append(gxe.ExpectColumnValuesToBeBetween(column="rows", min_value=0, max_value=most_rows))
    expected.append(gxe.ExpectColumnValuesToBeBetween(column="bytes", min_value=0, strict_min=True))
    return Contract("deltas", frame, expected)


def statistics(contract: Contract) -> Statistics:
    """The statistics of a day's rates and numbers: the reference of later days, if the day passes."""
    result: Statistics = {}
    for column in contract.frame.columns:
        if column.startswith(("rate_", "feature_")) and pd.api.types.is_float_dtype(contract.frame[column]):
            values = contract.frame[column].dropna()
            if len(values):
                result[column] = (float(values.mean()), float(values.std(ddof=0)), len(values))
    return result


def _means(frame: pd.DataFrame, declaration: Declaration, reference: Statistics, tolerance: Tolerance) -> list[Any]:
    gxe = _gxe()
    expected = []
    for f in declaration.features:
        column = f"feature_{f.name}"
        if f.kind == "number" and column in reference:
            mean, deviation, n = reference[column]
            if deviation < 1e-6 and math.isclose(mean, cast(float, f.default), rel_tol=1e-5, abs_tol=1e-6):
                continue  # nobody sent it on that day, as before the source grew
            low, high = tolerance.of_mean(mean, deviation, min(n, int(frame[column].count())))
            expected.append(gxe.ExpectColumnMeanToBeBetween(column=column, min_value=low, max_value=high))
    return expected


def _gxe() -> Any:
    # The import takes seconds, and the package has no types.
    return import_module("great_expectations.expectations")


def _plain(table: pa.Table) -> pd.DataFrame:
    """The columns of numbers and texts, nulls included. GX cannot judge lists."""
    names = [field.name for field in table.schema if not pa.types.is_list(field.type)]
    # pandas' Int64 holds nulls; float64 would round ids of 64 bits.
    types = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype()}
    return table.select(names).to_pandas(types_mapper=types.get)


def _present(columns: Sequence[str]) -> list[Any]:
    gxe = _gxe()
    return [gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns]


def _within(column: str, low: float, high: float) -> Any:
    gxe = _gxe()
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)


def _not_reserved(column: str) -> Any:
    gxe = _gxe()
    return gxe.ExpectColumnValuesToNotBeInSet(column=column, value_set=list(RESERVED_IDS))


def _ids(declaration: Declaration) -> list[str]:
    return [f"feature_{f.name}" for f in declaration.features if f.kind == "id"]
