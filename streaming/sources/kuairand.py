"""The source KuaiRand-Pure: a month of exposures of a real short-video app, with eight kinds of feedback.

Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos", CIKM 2022,
https://kuairand.com, CC BY-SA 4.0. The live part is the last `live_days` of the standard feed, the history the `days`
before them (China time). The files are taken from MINUTEHAND_DATA, else from the cache, else downloaded.

Features are causal, and counted as the profile store counts (docs/profiles.md): what it answers at the time of an
impression. So an impression counts as soon as it is shown, and a click at its own time if it comes within the window.
The time of each action is time_ms + play_time_ms, when the person leaves the video. The monthly statistics of the
archive are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streaming.declaration import Declaration, Feature, Online
from streaming.hashing import fnv1a64, text_id
from streaming.slots import SHOWN, WINDOWS, Slot, Slots
from streaming.source import Exposure
from streaming.sources.kuairand_files import find, folder, integers, places, read_tables
from streaming.views import Column, Rows, Views

_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_CHINA_MS = 8 * _HOUR_MS
Counts = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Exposures and clicks."""

_TASKS = {
    "click": "is_click",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "long_view": "long_view",
    "profile_enter": "is_profile_enter",
    "hate": "is_hate",
}
_PROFILE_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_PROFILE_CODES = tuple(f"onehot_feat{k}" for k in (0, 1, 2, 3, 6, 7, 8, 9, 10, 11))

declaration = Declaration(
    name="kuairand",
    features=(
        Feature("user", "id", view="user"),
        Feature("video", "id", view="item"),
        Feature("author", "id", view="video"),
        Feature("music", "id", view="video"),
        Feature("tags", "ids", view="video"),
        Feature("profile", "ids", view="profile"),
        Feature("tab", "id"),
        Feature("upload_type", "id", view="video"),
        Feature("hour", "id", view="derived"),
        Feature("duration", "number", view="video"),
        Feature("age", "number", view="derived"),
        Feature("user_shown", "number", view="derived"),
        Feature("user_rate", "number", view="derived"),
        Feature("user_tab_rate", "number", view="derived"),
        Feature("video_shown", "number", view="derived"),
        Feature("video_rate", "number", view="derived"),
        Feature("gap", "number", view="derived"),
    ),
    tasks=tuple(_TASKS),
    judged="click",
    window_ms=20 * 60_000,
    online=Online(dense_rate=0.1),  # benchmarks/quality.py compares it with 0 and 1
)

slots = Slots(
    (
        Slot("user", "user", windows=tuple(WINDOWS)),
        Slot("user_author", "user", by="author", windows=("7d",)),
        Slot("user_tag", "user", by="tags", windows=("7d",)),
        Slot("user_music", "user", by="music", windows=("7d",)),
        Slot("user_tab", "user", by="tab", windows=("7d", "all")),
        Slot("user_item", "user", by="item", windows=("7d",)),
        Slot("item", "item", windows=tuple(WINDOWS)),
    ),
    (SHOWN, *declaration.tasks),
)


WATCH = "watch"
"""The value task of `watch=1`: minutes of playing. The mean of an impression is 0.36."""


class KuaiRand:
    """The data set in a folder. Without a folder, it finds or downloads the files when the first event is read."""

    def __init__(self, days: int, live_days: int, folder: Path | None = None, watch: bool = False) -> None:
        self.days, self.live_days, self.folder = days, live_days, folder
        self.declaration, self.slots = declaration, slots
        if watch:
            tasks, rank = (*declaration.tasks, WATCH), {declaration.judged: 1, WATCH: 0.5}
            self.declaration = replace(declaration, tasks=tasks, values=(WATCH,), rank=rank)
            self.slots = Slots(slots.slots, (*slots.actions, WATCH))

    def history(self) -> Iterator[Exposure]:
        shown = self._columns()
        yield from self._exposures(shown, np.flatnonzero(shown["ts_ms"] < shown["live_ms"]))

    def live(self) -> Iterator[Exposure]:
        shown = self._columns()
        yield from self._exposures(shown, np.flatnonzero(shown["ts_ms"] >= shown["live_ms"]))

    def _exposures(self, shown: dict[str, Any], rows: NDArray[np.int64]) -> Iterator[Exposure]:
        for e, played_ms in zip(_exposures(shown, rows), shown["played_ms"][rows].tolist(), strict=True):
            if self.declaration.values and played_ms > 0:
                e = e._replace(outcomes=e.outcomes | {WATCH: e.ts_ms + played_ms}, values={WATCH: played_ms / 60_000})
            yield e

    @property
    def views(self) -> Views:
        """Views for the feature store: profiles of users and attributes of videos. Their tables are read on demand."""
        return Views(
            video=(Column("uploaded", "int"),),
            users=lambda: profiles(*self._tables()),
            items=lambda: attributes(*self._tables()),
            derive=_derive,
            inputs=_INPUTS,
        )

    def _columns(self) -> dict[str, Any]:
        return columns(*self._tables(), self.days, self.live_days)

    def _tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Reads the log, the users and the videos."""
        log, users, videos = (
            read_tables(paths, names) for paths, names in zip(find(self.folder or folder()), _NEEDED, strict=True)
        )
        return log, users, videos


def configure(days: int = 7, live_days: int = 7, watch: int = 0) -> KuaiRand:
    """Takes the last `live_days` as live, and the `days` before them as history. The official archive has 31 in all.

    By default a base that learned a week meets the next week, as that of a weekly retrain does. With `watch` 1 there is
    the value task `watch`, and it ranks beside click.
    """
    for name, value in (("days", days), ("live_days", live_days)):
        if value < 1:
            raise ValueError(f"kuairand: {name} is {value}, allowed is >= 1")
    if watch not in (0, 1):
        raise ValueError(f"kuairand: watch is {watch}, allowed is 0 or 1")
    return KuaiRand(days, live_days, watch=bool(watch))


_LOG = ("user_id", "video_id", "time_ms", "play_time_ms", "duration_ms", "tab", *_TASKS.values())
_USERS = ("user_id", "user_active_degree", *_PROFILE_COUNTS, *_PROFILE_CODES)
_VIDEOS = ("video_id", "author_id", "upload_dt", "upload_type", "music_id", "tag")
_NEEDED = (_LOG, _USERS, _VIDEOS)


def columns(log: pa.Table, users: pa.Table, videos: pa.Table, days: int, live_days: int) -> dict[str, Any]:
    """Computes one array (or list) a column, in event order, from `days` before the live part on."""
    order = np.argsort(integers(log, "time_ms"), kind="stable")
    ts_ms = integers(log, "time_ms")[order]
    live_ms = int((ts_ms[-1] + _CHINA_MS) // _DAY_MS - live_days + 1) * _DAY_MS - _CHINA_MS
    order = order[ts_ms >= live_ms - days * _DAY_MS]
    log = log.take(pa.array(order))
    ts_ms, left_ms = integers(log, "time_ms"), integers(log, "time_ms") + np.maximum(0, integers(log, "play_time_ms"))
    user, video, tab = integers(log, "user_id"), integers(log, "video_id"), integers(log, "tab")
    clicked = (integers(log, "is_click") > 0) & (left_ms - ts_ms <= declaration.window_ms)
    user_row, video_row = places(user, users, "user_id"), places(video, videos, "video_id")
    profile_lists, attribute = _profiles(users), _attributes(videos)
    formulas = _formulas(
        ts_ms,
        uploaded=attribute["uploaded"][video_row],
        since_ms=_since(user, ts_ms),
        user=_known(user, ts_ms, left_ms, clicked),
        user_tab=_known(user * 64 + tab, ts_ms, left_ms, clicked),
        video=_known(video, ts_ms, left_ms, clicked),
    )
    return {
        "live_ms": live_ms,
        "ts_ms": ts_ms,
        "left_ms": left_ms,
        "played_ms": left_ms - ts_ms,
        "labels": np.stack([integers(log, column) > 0 for column in _TASKS.values()], 1),
        "user": user,
        "video": video,
        "author": attribute["author"][video_row],
        "music": attribute["music"][video_row],
        "tags": [attribute["tags"][k] for k in video_row],
        "profile": [profile_lists[k] for k in user_row],
        "tab": tab,
        "upload_type": attribute["upload_type"][video_row],
        "duration": _duration(integers(log, "duration_ms")),
        **formulas,
    }


def _formulas(
    ts_ms: NDArray[np.int64],
    uploaded: NDArray[np.int64],
    since_ms: NDArray[np.int64],
    user: Counts,
    user_tab: Counts,
    video: Counts,
) -> dict[str, NDArray[Any]]:
    """Computes the features of view `derived`: for the whole log, and in `_derive` for the feature store's views."""
    age_days = (ts_ms + _CHINA_MS) / _DAY_MS - uploaded
    return {
        "hour": (ts_ms + _CHINA_MS) % _DAY_MS // _HOUR_MS,
        "age": np.log1p(np.maximum(0, age_days)) - 2.5,
        "user_shown": np.log1p(user[0]) / 2 - 1,
        "user_rate": _log_odds(user),
        "user_tab_rate": _log_odds(user_tab),
        "video_shown": np.log1p(video[0]) / 2 - 1.5,
        "video_rate": _log_odds(video),
        # The first exposure counts as one after a day.
        "gap": np.log1p(np.minimum(since_ms, _DAY_MS) / 1000) / 3 - 1.5,
    }


_INPUTS = (
    *("user_shown_all", "user_click_all", "user_shown_ms", "item_shown_all", "item_click_all"),
    *("user_tab_all", "user_tab_shown_all", "user_tab_click_all"),
)


def _derive(rows: Rows) -> dict[str, list[Any]]:
    """Computes `_formulas` from the columns of the views. A key that the store does not know has no counts yet."""

    def column(name: str) -> NDArray[np.int64]:
        return np.array([value or 0 for value in rows[name]], np.int64)

    ts_ms = column("ts_ms")
    last = np.array([-_DAY_MS if value is None else value for value in rows["user_shown_ms"]], np.int64)
    of_tab = np.zeros((2, len(ts_ms)), np.int64)
    counted = zip(
        rows["tab"], rows["user_tab_all"], rows["user_tab_shown_all"], rows["user_tab_click_all"], strict=True
    )
    for k, (tab, tabs, shown, clicked) in enumerate(counted):
        if tab in tabs:
            place = tabs.index(tab)
            of_tab[:, k] = shown[place], clicked[place]
    derived = _formulas(
        ts_ms,
        uploaded=column("uploaded"),
        since_ms=np.maximum(0, ts_ms - last),
        user=(column("user_shown_all"), column("user_click_all")),
        user_tab=(of_tab[0], of_tab[1]),
        video=(column("item_shown_all"), column("item_click_all")),
    )
    every = np.arange(len(ts_ms))
    return {name: _plain(values, every) for name, values in derived.items()}


def profiles(log: pa.Table, users: pa.Table, videos: pa.Table) -> pa.Table:
    """Makes the batch view of users. Its rows are valid since the log began."""
    ids, lists = integers(users, "user_id"), pa.array(_profiles(users)[:-1], pa.list_(pa.int64()))
    return pa.table({"user": ids, "ts_ms": np.full(len(ids), _begin_ms(log)), "profile": lists})


def attributes(log: pa.Table, users: pa.Table, videos: pa.Table) -> pa.Table:
    """Makes the batch view of videos. Its rows are valid since the log began. Only the log has a video's duration."""
    ids, attribute = integers(videos, "video_id"), _attributes(videos)
    duration_ms = np.zeros(len(ids) + 1, np.int64)
    duration_ms[places(integers(log, "video_id"), videos, "video_id")] = integers(log, "duration_ms")
    columns = {name: column[:-1] for name, column in attribute.items() if name != "tags"}
    return pa.table(
        {
            "video": ids,
            "ts_ms": np.full(len(ids), _begin_ms(log)),
            "tags": pa.array(attribute["tags"][:-1], pa.list_(pa.int64())),
            "duration": np.round(_duration(duration_ms[:-1]), 4),
            **columns,
        }
    )


def _begin_ms(log: pa.Table) -> int:
    return int(integers(log, "time_ms").min()) // _DAY_MS * _DAY_MS


def _duration(ms: NDArray[np.int64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = np.log1p(np.maximum(0, ms) / 1000) / 2 - 1.5
    return scaled


def _attributes(videos: pa.Table) -> dict[str, Any]:
    """Reads the attributes of each video. The last place of each column is for a video without a row."""
    dates = pc.cast(videos["upload_dt"], pa.date32()).cast(pa.int32())
    kinds = pc.fill_null(videos["upload_type"].cast(pa.string()), "").to_pylist()
    types = np.array([text_id(kind) for kind in kinds], np.int64)
    return {
        "author": np.append(integers(videos, "author_id"), 0),
        "music": np.append(integers(videos, "music_id"), 0),
        "tags": _tags(videos),
        "upload_type": np.append(types, 0),
        "uploaded": np.append(pc.fill_null(dates, 0).to_numpy().astype(np.int64), 0),
    }


def _exposures(shown: dict[str, Any], rows: NDArray[np.int64]) -> Iterator[Exposure]:
    names = [f.name for f in declaration.features]
    values = [_plain(shown[name], rows) for name in names]
    keys = zip(
        rows.tolist(), *(shown[name][rows].tolist() for name in ("ts_ms", "left_ms", "labels", "user", "video")),
        strict=True,
    )  # fmt: skip
    tasks = declaration.tasks
    for (row, ts_ms, left_ms, labels, user, video), features in zip(keys, zip(*values, strict=True), strict=True):
        outcomes = {task: left_ms for task, label in zip(tasks, labels, strict=True) if label}
        # The log sometimes repeats (user, video, time), so the number of the row in event order is the key.
        values_of = dict(zip(names, features, strict=True))
        yield Exposure(f"k{ts_ms}-{row}", user, video, ts_ms, values_of, outcomes)


def _plain(column: Any, rows: NDArray[np.int64]) -> list[Any]:
    if isinstance(column, list):
        return [column[k] for k in rows]
    picked = column[rows]
    return list(np.round(picked, 4).tolist() if picked.dtype.kind == "f" else picked.tolist())


def _known(
    key: NDArray[np.int64], ts_ms: NDArray[np.int64], left_ms: NDArray[np.int64], clicked: NDArray[np.bool_]
) -> Counts:
    """Counts for each row the exposures of its key before it, and the clicks that had come by then."""
    return before(key, ts_ms, key, ts_ms), before(key[clicked], left_ms[clicked], key, ts_ms)


def _log_odds(counts: Counts) -> NDArray[np.float64]:
    """Computes a click rate as smoothed log-odds."""
    shown, clicks = counts
    odds: NDArray[np.float64] = (clicks + 1.0) / (np.maximum(0, shown - clicks) + 1.3)
    return np.log(odds)


def before(
    key: NDArray[np.int64], at_ms: NDArray[np.int64], asked: NDArray[np.int64], ts_ms: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Counts for each (asked key, ts) that key's events with at < ts, by one sort and two binary searches a row."""
    times = np.concatenate([at_ms, ts_ms])
    first = times.min()
    span = int(times.max() - first) + 1
    _, codes = np.unique(np.concatenate([key, asked]), return_inverse=True)
    events = np.sort(codes[: len(key)] * span + (at_ms - first))
    base = codes[len(key) :] * span
    counts: NDArray[np.int64] = np.searchsorted(events, base + (ts_ms - first)) - np.searchsorted(events, base)
    return counts


def _since(user: NDArray[np.int64], ts_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Computes the time since the user's newest exposure of an earlier time; a day for the first one."""
    order = np.lexsort((ts_ms, user))
    user, at_ms = user[order], ts_ms[order]
    begins = np.r_[True, (user[1:] != user[:-1]) | (at_ms[1:] != at_ms[:-1])]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(user)), 0))
    same = (first > 0) & (user[first - 1] == user)
    since = np.empty(len(user), np.int64)
    since[order] = np.where(same, at_ms - at_ms[first - 1], _DAY_MS)
    return since


def _profiles(users: pa.Table) -> list[list[int]]:
    """Makes the ids of each user's profile, one a column, of the column's number and its value. Adds an empty list."""
    degree = fnv1a64(users["user_active_degree"].cast(pa.string()).fill_null("")) >> np.uint64(2)
    ids = [degree.astype(np.int64)]
    for place, name in enumerate(_PROFILE_COUNTS, 1):
        ids.append(10_000 * place + np.log2(1 + np.maximum(0, integers(users, name))).astype(np.int64))
    for place, name in enumerate(_PROFILE_CODES, 1 + len(_PROFILE_COUNTS)):
        ids.append(10_000 * place + integers(users, name))
    return [*np.stack(ids, 1).tolist(), []]


def _tags(videos: pa.Table) -> list[list[int]]:
    texts = videos["tag"].cast(pa.string()).fill_null("").to_pylist()
    return [*([int(tag) for tag in text.split(",") if tag.strip().isdigit()] for text in texts), []]
