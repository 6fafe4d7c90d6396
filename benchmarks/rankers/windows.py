"""Measures what counted features are worth: DeepFM on KuaiRand without them, with the source's own, and with all.

All are those that the source's slots give (docs/profiles.md): for the user and the item the impressions and the rates
of each action in 1 h, 1 d, 7 d and all time; how often the user was shown the author, tag, music, tab and video at
hand, and clicked; the values shown most to the user, and clicked last. A list shares the table of the feature that it
counts by. The base learns 7 days, and its frozen copy and a model that is synced each hour score the next 7.

A replay at many times the pace reads counts that are minutes of event time old. The last rows are the frozen copy's AUC
with the source's own features as of a push each so many minutes, which is readable a minute later.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.parts import Part, low_end, row
from benchmarks.common.past import NEVER, Past
from benchmarks.rankers.freshness import KUAIRAND, MINUTE_MS, MODEL, READ_AT_ONCE, Base, Data, auc_of, served
from streaming.declaration import Declaration, Feature
from streaming.example import Batch, FeatureColumn, batches, concat
from streaming.slots import BY_ITEM, SHOWN, Slot
from streaming.source import Source, load

SYNC_MS = 60 * MINUTE_MS
PRIOR = 10.0
"""A rate is smoothed by so many impressions at the action's rate in the history."""
OWN = ("user_shown", "user_rate", "user_tab_rate", "video_shown", "video_rate", "gap")
"""The counted features that the source declares."""
PUSHES = (5, 24)
"""Minutes of event time between two commits of the counts: 24 is a second of a week's replay in seven minutes."""


class Log(NamedTuple):
    """The source's exposures, the first `live_at` of which are the history, and what its slots held at each."""

    source: Any
    exposures: list[Any]
    live_at: int
    examples: Batch
    past: Past

    @classmethod
    def read(cls, source: Source) -> Log:
        history, live = list(source.history()), list(source.live())
        examples = concat(list(batches([*history, *live], source.declaration, READ_AT_ONCE)))
        slots = source.slots  # type: ignore[attr-defined]
        return cls(
            source, [*history, *live], len(history), examples, Past([*history, *live], source.declaration, slots)
        )

    def data(self, declaration: Declaration, columns: dict[str, FeatureColumn]) -> Data:
        """The two parts with these columns in place of, or beside, the source's own."""
        examples = replace(self.examples, features=self.examples.features | columns)
        history, live = examples.slice(0, self.live_at), examples.slice(self.live_at, examples.size)
        return Data(KUAIRAND, declaration, history, live)


def numbers(log: Log) -> dict[str, FeatureColumn]:
    """The counts and rates of users and items, and of the user with each value at hand."""
    columns: dict[str, FeatureColumn] = {}
    for slot in log.past.slots.slots:
        actions = (SHOWN, "click") if slot.by else log.past.slots.actions
        for window in slot.windows:
            counts = {action: log.past.counts(slot, window, action) for action in actions}
            columns[f"{slot.name}_{SHOWN}_{window}"] = (np.log1p(counts[SHOWN]) / 2 - 1).astype(np.float32)
            for action in actions[1:]:
                rate = _rate(counts[action], counts[SHOWN], _mean(log, action))
                columns[f"{slot.name}_{action}_rate_{window}"] = rate
    return columns


def _mean(log: Log, action: str) -> float:
    place = log.source.declaration.tasks.index(action)
    return float(log.examples.labels[: log.live_at, place].mean())


def _rate(happened: Any, shown: Any, mean: float) -> NDArray[np.float32]:
    """The logarithm of a smoothed rate over the mean rate; 0 where nothing was shown."""
    smoothed = (happened + PRIOR * mean) / (shown + PRIOR)
    return np.asarray(np.log(smoothed / mean) / 2, np.float32)


def lists(log: Log) -> tuple[dict[str, FeatureColumn], list[Feature]]:
    """Two lists of each slot with values, and their declarations."""
    columns: dict[str, FeatureColumn] = {}
    features: list[Feature] = []
    for slot in log.past.slots.slots:
        if slot.by:
            table = _table(log.source.declaration, slot)
            names = f"{slot.name}_most", f"{slot.name}_click_last"
            columns |= dict(zip(names, log.past.lists(slot, "click"), strict=True))
            features += [Feature(name, "ids", table) for name in names]
    return columns, features


def _table(declaration: Declaration, slot: Slot) -> str:
    """The table of the feature that a slot counts by."""
    return next(f.table for f in declaration.features if f.name == slot.by or slot.by == BY_ITEM and f.view == "item")


def own(log: Log, past: Past) -> dict[str, FeatureColumn]:
    """The source's own counted features from the counts of `past`, by the source's formulas."""
    slots = {slot.name: slot for slot in past.slots.slots}
    tab, last = log.examples.features["tab"], past.newest_ms(slots["user"])
    inputs: dict[str, list[Any]] = {
        "ts_ms": past.ts_ms.tolist(),
        "uploaded": [0] * len(past.ts_ms),  # only the age follows from it
        "tab": list(tab),
        "user_tab_all": [[value] for value in tab],
        "user_shown_ms": [None if at_ms == NEVER else at_ms for at_ms in last.tolist()],
    }
    for name in ("user", "item", "user_tab"):
        for action in (SHOWN, "click"):
            counts = past.counts(slots[name], "all", action).tolist()
            inputs[f"{name}_{action}_all"] = [[count] for count in counts] if name == "user_tab" else counts
    derived = log.source.views.derive(inputs)
    return {name: np.array(derived[name], np.float32) for name in OWN}


def late(log: Log, every_ms: int) -> dict[str, FeatureColumn]:
    """The source's own features from counts that are committed each `every_ms`, and readable a minute later."""
    ts_ms = log.past.ts_ms
    as_of_ms = np.minimum(ts_ms, (ts_ms - MINUTE_MS) // every_ms * every_ms)
    return own(log, Past(log.exposures, log.source.declaration, log.past.slots, as_of_ms))


def variants(log: Log) -> dict[str, Data]:
    """The name of a set of features -> the data with it."""
    declared = log.source.declaration
    without = tuple(f for f in declared.features if f.name not in OWN)
    counted, (of_lists, list_features) = numbers(log), lists(log)
    more = tuple(Feature(name, "number") for name in counted)
    features = {
        "none": without,
        "own": declared.features,
        "numbers": declared.features + more,
        "lists": declared.features + tuple(list_features),
        "all": declared.features + more + tuple(list_features),
    }
    return {name: log.data(replace(declared, features=some), counted | of_lists) for name, some in features.items()}


def run(seeds: Sequence[int]) -> Part:
    """The AUC of click with each set of features, and the gains of some over others."""
    log = Log.read(load(KUAIRAND))
    sets = variants(log)
    old = {minutes: log.data(log.source.declaration, late(log, minutes * MINUTE_MS)).live for minutes in PUSHES}
    figures: dict[str, list[float]] = {}
    for seed in seeds:
        for name, data in sets.items():
            with tempfile.TemporaryDirectory(prefix="minutehand-quality-") as folder:
                state = Base(data, MODEL, seed, Path(folder)).state(data.declaration.online.dense_rate)
                _add(figures, f"frozen_{name}", auc_of(state, data.live))
                for minutes, live in old.items() if name == "own" else ():
                    _add(figures, f"late_{minutes}", auc_of(state, live) - figures["frozen_own"][-1])
                if f"online_{name}" in LABELS:
                    _add(figures, f"online_{name}", auc_of(state, data.live, served(state, data.live, SYNC_MS)))
    for kind in _KINDS:
        for gain, (more, less) in _GAINS.items():
            difference = np.subtract(figures[f"{kind}_{more}"], figures[f"{kind}_{less}"])
            figures[f"{kind}_{gain}"], figures[f"{kind}_{gain}_low"] = difference.tolist(), [low_end(difference)]
    rows = [row(label, figures[name], GOALS.get(name, "")) for name, label in LABELS.items()]
    gains = {"window_features_gain": "online_all_gain", "window_lists_gain": "online_lists_gain"}
    return Part(rows, {name: float(np.mean(figures[of])) for name, of in gains.items()})


def _add(figures: dict[str, list[float]], name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


_SETS = {
    "none": "no counted features",
    "own": "the six that the source declares",
    "numbers": "the six, and all counts and rates",
    "lists": "the six, and all lists",
    "all": "the six, and both",
}
_GAINS = {"all_gain": ("all", "none"), "own_gain": ("own", "none"), "lists_gain": ("lists", "own")}
"""Gain -> the sets that it compares."""
_KINDS = {"frozen": "KuaiRand, click: AUC of the frozen copy", "online": "KuaiRand, click: AUC, synced each hour"}


def _labels() -> dict[str, str]:
    """Figure -> its line in the page."""
    labels = {f"{kind}_{name}": f"{title}; {text}" for kind, title in _KINDS.items() for name, text in _SETS.items()}
    del labels["online_numbers"]  # it takes a minute
    for kind, title in _KINDS.items():
        for gain, (more, less) in _GAINS.items():
            labels[f"{kind}_{gain}"] = f"{title}; {_SETS[more]}, less {_SETS[less]}"
            labels[f"{kind}_{gain}_low"] = "... the low end of that difference, 95 %"
    changed = "KuaiRand, click: AUC of the frozen copy, changed by counts of a push each"
    return labels | {f"late_{minutes}": f"{changed} {minutes} minutes of event time" for minutes in PUSHES}


LABELS = _labels()
GOALS = {"online_all_gain_low": "> 0"}
