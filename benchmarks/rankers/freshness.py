"""Measures what freshness is worth: a model that learns the live part against a frozen copy of its base, in process.

The base learns the history once. Then the live part passes in event time. At each sync the model learns the examples
whose windows have closed, and its scores of the next interval are those of that sync. So a sync of 10 minutes leaves
the model 20 to 30 minutes old where the window has 20. The frozen copy is the base. A gain is the difference of both
AUCs over the whole live part.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.parts import Part, row
from common.auc import auc
from delta_log.log import Log
from streaming.declaration import Declaration
from streaming.example import Batch, batches, concat
from streaming.source import load
from training.learn import batch_pass
from training.learn.learner import Learner, Settings
from training.learn.state import State, scores_of
from training.models.model import load as load_model

MINUTE_MS = 60_000
DAY_MS = 1440 * MINUTE_MS
READ_AT_ONCE = 8192
KUAIRAND = "kuairand?days=7&live_days=7"
SIMULATOR = "simulator?seed=7&history_minutes=60&minutes=60"
MODEL = "deepfm"
DENSE_RATES = (0.0, 0.1, 1.0)
"""The factors of the dense weights' learning rates that are compared; those that the sources declare are among them."""
SYNCS = {"10min": 10, "1h": 60, "5h": 300, "1day": 1440}
"""Name -> minutes of event time between two syncs, those of the Monolith paper's Table 2 and 10 minutes."""


class Data(NamedTuple):
    """A source's two parts, decoded."""

    name: str
    declaration: Declaration
    history: Batch
    live: Batch

    @classmethod
    def read(cls, name: str) -> Data:
        source = load(name)
        d = source.declaration
        history, live = (concat(list(batches(part(), d, READ_AT_ONCE))) for part in (source.history, source.live))
        return cls(name, d, history, live)

    @property
    def last_day(self) -> Batch:
        """The last day of the history."""
        return self.history.take(np.flatnonzero(self.history.ts_ms >= self.history.ts_ms[-1] - DAY_MS))


class Base:
    """A lineage with one base that has learned the history; each `state` of it is a copy that learns on."""

    def __init__(self, data: Data, model: str, seed: int, folder: Path) -> None:
        self.data, self.model, self.seed, self.log = data, model, seed, Log(folder)
        state = State(self._learner(1.0), data.name)
        state.learn(data.history)
        self.lineage = batch_pass.begin(state, self.log, {}).lineage

    def state(self, dense_rate: float = 1.0) -> State:
        state = State(self._learner(dense_rate), self.data.name)
        state.restore(self.log, self.lineage)
        return state

    def _learner(self, dense_rate: float) -> Learner:
        model = load_model(self.model, self.data.declaration, self.seed)
        return Learner(model, Settings(seed=self.seed, dense_rate=dense_rate))


def intervals(live: Batch, window_ms: int, every_ms: int) -> Iterator[tuple[Batch, Batch]]:
    """Yields for each sync the examples whose windows have closed since the last one, and those of the time until the
    next one."""
    start, learned, scored = int(live.ts_ms[0]), 0, 0
    while scored < live.size:
        closed = int(np.searchsorted(live.ts_ms, start - window_ms))
        until = int(np.searchsorted(live.ts_ms, start + every_ms))
        yield live.slice(learned, closed), live.slice(scored, until)
        start, learned, scored = start + every_ms, max(closed, learned), until


def served(state: State, live: Batch, every_ms: int) -> NDArray[np.float32]:
    """The logits float32[n] of the judged task as served in `live` by a model that is synced each `every_ms`."""
    parts = []
    for learned, shown in intervals(live, state.declaration.window_ms, every_ms):
        state.learn(learned)
        parts.append(judged(state, shown))
    return np.concatenate(parts)


def judged(state: State, examples: Batch) -> NDArray[np.float32]:
    return scores_of(state.learner, examples)[:, state.declaration.tasks.index(state.declaration.judged)]


def auc_of(state: State, examples: Batch, scores: NDArray[np.float32] | None = None) -> float:
    """The AUC of the judged task."""
    scores = judged(state, examples) if scores is None else scores
    return auc(examples.labels[:, state.declaration.tasks.index(state.declaration.judged)], scores)


def run(seeds: Sequence[int]) -> Part:
    """KuaiRand: four syncs, and how the dense weights learn. The simulator: its gain with each of these."""
    figures: dict[str, list[float]] = {}
    kuairand, simulator = Data.read(KUAIRAND), Data.read(SIMULATOR)
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="minutehand-quality-") as name:
            _kuairand(Base(kuairand, MODEL, seed, Path(name) / "kuairand"), figures)
            _simulator(Base(simulator, MODEL, seed, Path(name) / "simulator"), figures)
    names = (*(f"online_gain_{sync}" for sync in SYNCS), "simulator_gain", "forgetting")
    rows = [row(label, figures[name], GOALS.get(name, "")) | {"name": name} for name, label in LABELS.items()]
    return Part(rows, {name: float(np.mean(figures[name])) for name in names})


def _kuairand(base: Base, figures: dict[str, list[float]]) -> None:
    live, last_day, own = base.data.live, base.data.last_day, base.data.declaration.online.dense_rate
    frozen = base.state()
    before, day_before = auc_of(frozen, live), auc_of(frozen, last_day)
    _add(figures, "kuairand_frozen", before)
    for sync, minutes in SYNCS.items():
        for rate in DENSE_RATES if sync == "1h" else (own,):
            state = base.state(rate)
            gain = auc_of(state, live, served(state, live, minutes * MINUTE_MS)) - before
            if rate == own:
                _add(figures, f"online_gain_{sync}", gain)
            if sync == "1h":
                _add(figures, f"kuairand_dense_{rate:g}", gain)
            if sync == "10min":
                _add(figures, "forgetting", day_before - auc_of(state, last_day))


def _simulator(base: Base, figures: dict[str, list[float]]) -> None:
    live, own = base.data.live, base.data.declaration.online.dense_rate
    before = auc_of(base.state(), live)
    _add(figures, "simulator_frozen", before)
    for rate in DENSE_RATES:
        state = base.state(rate)
        gain = auc_of(state, live, served(state, live, MINUTE_MS)) - before
        _add(figures, f"simulator_dense_{rate:g}", gain)
        if rate == own:
            _add(figures, "simulator_gain", gain)


def _add(figures: dict[str, list[float]], name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


_GAIN = "KuaiRand, click: gain, synced each"
_RATES = {"0": "held", "0.1": "at a tenth of their rate", "1": "at their rate"}
LABELS = {
    "kuairand_frozen": "KuaiRand, click: AUC of the frozen copy",
    "online_gain_10min": f"{_GAIN} 10 minutes",
    "online_gain_1h": f"{_GAIN} hour",
    "online_gain_5h": f"{_GAIN} 5 hours",
    "online_gain_1day": f"{_GAIN} day",
    **{f"kuairand_dense_{rate}": f"... each hour, dense weights {text}" for rate, text in _RATES.items()},
    "forgetting": "KuaiRand, click: AUC lost on the base's last day, synced each 10 minutes",
    "simulator_frozen": "simulator, watch: AUC of the frozen copy",
    "simulator_gain": "simulator, watch: gain, synced each minute",
    **{f"simulator_dense_{rate}": f"... dense weights {text}" for rate, text in _RATES.items()},
}
GOALS = {"online_gain_10min": "> 0", "online_gain_1h": "> 0", "simulator_gain": "> 0", "forgetting": "<= 0.002"}
