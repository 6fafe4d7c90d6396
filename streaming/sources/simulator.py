"""The source simulator: a small video app whose true probabilities are known, for demos without data and for tests.

Viewers (power law) are shown clips (power law, new ones each minute, old ones fade). Whether a viewer watches depends
on the clip's quality, the viewer, and how much the viewer's group likes the clip's topics *now*: that taste turns with
time, one turn of a topic in about 60 / drift minutes, so that what was learned an hour ago misleads. `save` is the
second, rarer task, correlated with `watch` beyond what the features say (a Gaussian copula of rho = 0.5).

    simulator?seed=7&minutes=30&rate=20&drift=2

Each minute is drawn from (seed, minute). So the same parameters give the same events, and a longer run begins with the
events of a shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.declaration import Declaration, Feature, Policy
from streaming.hashing import mix64
from streaming.slots import SHOWN, WINDOWS, Slot, Slots
from streaming.source import Exposure
from streaming.views import Column, Rows, Views

START_MS = 1_700_000_000_000
WINDOW_MS = 60_000
GROUPS, TOPICS = 6, 16
_SHARE_OF_REQUEST = (0.35, 0.25, 0.2, 0.12, 0.08)
"""Probability that a request shows one, two, ... five clips."""
_LIFE_MINUTES, _TURN_MINUTES = 12.0, 60.0
_RHO = 0.5

declaration = Declaration(
    name="simulator",
    features=(
        Feature("viewer", "id", view="user"),
        Feature("party", "id", view="profile"),
        Feature("clip", "id", view="item"),
        Feature("maker", "id", view="video"),
        Feature("topics", "ids", view="video"),
        Feature("party_topics", "ids", view="derived"),
        Feature("age", "number", view="derived"),
    ),
    tasks=("watch", "save"),
    judged="watch",
    window_ms=WINDOW_MS,
)

slots = Slots(
    (
        Slot("user", "user", windows=tuple(WINDOWS)),
        Slot("user_maker", "user", by="maker", windows=("1h", "1d")),
        Slot("user_topic", "user", by="topics", windows=("1h", "1d")),
        Slot("user_item", "user", by="item", windows=("1d",)),
        Slot("item", "item", windows=tuple(WINDOWS)),
    ),
    (SHOWN, *declaration.tasks),
)


class Simulator:
    """A run of the app: `history` is the first `history_minutes`, `live` the `minutes` after them."""

    slots = slots

    def __init__(
        self,
        seed: int,
        minutes: int,
        history_minutes: int,
        rate: float,
        drift: float,
        viewers: int,
        clips: int,
        new_clips: int,
        delay_s: float,
        late: float,
        expire_minutes: int,
    ) -> None:
        expire = (Policy("clip", expire_ms=expire_minutes * 60_000),) if expire_minutes else ()
        self.declaration = replace(declaration, policies=expire)
        self.seed, self.minutes, self.history_minutes = seed, minutes, history_minutes
        self.rate, self.drift, self.delay_s, self.late = rate, drift, delay_s, late
        self.stock, self.births = clips, new_clips
        world = np.random.default_rng([seed, 0])
        self.viewer_weight = np.arange(1, viewers + 1) ** -0.9
        self.viewer_weight /= self.viewer_weight.sum()
        self.viewer_party = world.integers(0, GROUPS, viewers)
        self.viewer_bias = world.normal(0, 0.4, viewers)
        self.phase = world.uniform(0, 2 * math.pi, (GROUPS, TOPICS))
        # Speeds differ, so that not all tastes return at once, which would make an old model right again.
        self.turn = world.uniform(0.4, 1.6, (GROUPS, TOPICS)) * 2 * math.pi / _TURN_MINUTES
        blocks = [self._born(minute) for minute in range(-1, history_minutes + minutes)]
        self.birth, self.popularity, self.quality, self.maker, self.topics = (
            np.concatenate([block[k] for block in blocks]) for k in range(5)
        )
        # Ids as a platform issues them: 64 bits, any sign.
        self.clip_id = mix64(np.arange(len(self.birth)) + 1000 * (seed + 1)).view(np.int64)
        self.place = {int(clip): k for k, clip in enumerate(self.clip_id)}

    def history(self) -> Iterator[Exposure]:
        for minute in range(self.history_minutes):
            yield from self._minute(minute)

    def live(self) -> Iterator[Exposure]:
        for minute in range(self.history_minutes, self.history_minutes + self.minutes):
            yield from self._minute(minute)

    @property
    def views(self) -> Views:
        """Views for the feature store: a viewer's party; a clip's maker, topics and birth; age and cross on demand."""
        return Views(video=(Column("born", "number"),), users=self._viewers, items=self._clips, derive=_derive)

    def _viewers(self) -> pa.Table:
        n = len(self.viewer_party)
        return pa.table({"viewer": np.arange(n), "ts_ms": np.full(n, START_MS), "party": self.viewer_party + 1})

    def _clips(self) -> pa.Table:
        born_ms = START_MS + (self.birth * 60_000).astype(np.int64)
        topics = pa.array((self.topics + 1).tolist(), pa.list_(pa.int64()))
        columns = {"clip": self.clip_id, "ts_ms": born_ms, "maker": self.maker, "topics": topics, "born": self.birth}
        return pa.table(columns)

    def truth(self, exposures: Sequence[Exposure]) -> NDArray[np.float64]:
        """Computes the true probability of each task for each exposure: float64[n, tasks]."""
        viewer = np.array([e.user_id for e in exposures], np.int64)
        clip = np.array([self.place[e.item_id] for e in exposures], np.int64)
        return self._probability(viewer, clip, np.array([e.ts_ms for e in exposures], np.int64))

    def _born(self, minute: int) -> tuple[NDArray[Any], ...]:
        """Draws the clips born in a minute (-1: the stock): birth, popularity, quality, maker, topics [n, 2]."""
        rng = np.random.default_rng([self.seed, 1, minute + 1])
        n = self.births if minute >= 0 else self.stock
        birth = rng.uniform(-_LIFE_MINUTES, 0, n) if minute < 0 else np.full(n, float(minute))
        topics = np.argsort(rng.random((n, TOPICS)), axis=1)[:, :2]
        return birth, rng.pareto(1.3, n) + 0.1, rng.normal(0, 0.5, n), rng.zipf(1.6, n) % 200, topics

    def _probability(
        self, viewer: NDArray[np.int64], clip: NDArray[np.int64], ts_ms: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        now = (ts_ms - START_MS)[:, None] / 60_000
        party, topics = self.viewer_party[viewer][:, None], self.topics[clip]
        taste = np.sin(self.phase[party, topics] + self.drift * self.turn[party, topics] * now).sum(1)
        watch = -0.4 + 1.1 * taste + self.viewer_bias[viewer] + self.quality[clip]
        save = -3.0 + 0.8 * taste + 1.5 * self.viewer_bias[viewer]
        return np.stack([1 / (1 + np.exp(-watch)), 1 / (1 + np.exp(-save))], 1)

    def _minute(self, minute: int) -> Iterator[Exposure]:
        rng = np.random.default_rng([self.seed, 2, minute])
        sizes = np.arange(1, len(_SHARE_OF_REQUEST) + 1)
        requests = max(1, round(60 * self.rate / float(sizes @ _SHARE_OF_REQUEST)))
        shown = rng.choice(sizes, requests, p=_SHARE_OF_REQUEST)
        at_ms = START_MS + minute * 60_000 + np.sort(rng.integers(0, 60_000, requests))
        viewer = np.repeat(rng.choice(len(self.viewer_weight), requests, p=self.viewer_weight), shown)
        ts_ms = np.repeat(at_ms, shown)
        alive = np.flatnonzero(self.birth < minute + 0.5)
        weight = self.popularity[alive] * np.exp((self.birth[alive] - minute) / _LIFE_MINUTES)
        clip = rng.choice(alive, len(viewer), p=weight / weight.sum())
        happened = self._outcomes(rng, self._probability(viewer, clip, ts_ms))
        after = self._delays(rng, happened.shape) + ts_ms[:, None]
        age = _age(ts_ms, self.birth[clip])
        parties, topics = self.viewer_party[viewer] + 1, self.topics[clip] + 1
        rows = zip(
            viewer.tolist(), parties.tolist(), self.clip_id[clip].tolist(), ts_ms.tolist(),
            self.maker[clip].astype(int).tolist(), topics.tolist(), age,
            happened.tolist(), after.tolist(), strict=True,
        )  # fmt: skip
        for k, (viewer_id, party, clip_id, ts, maker, clip_topics, clip_age, actions, times) in enumerate(rows):
            features = {
                "viewer": viewer_id,
                "party": party,
                "clip": clip_id,
                "maker": maker,
                "topics": clip_topics,
                "party_topics": _cross(party, clip_topics),
                "age": clip_age,
            }
            outcomes = {task: t for task, done, t in zip(declaration.tasks, actions, times, strict=True) if done}
            yield Exposure(f"s{self.seed}-{minute}-{k}", viewer_id, clip_id, ts, features, outcomes)

    @staticmethod
    def _outcomes(rng: np.random.Generator, p: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Draws both tasks at once: normals correlated by rho, each below its own quantile with its own probability."""
        first, other = rng.standard_normal((2, len(p)))
        z = np.stack([first, _RHO * first + math.sqrt(1 - _RHO**2) * other], 1)
        uniform = 0.5 * (1 + _erf(z / math.sqrt(2)))
        return uniform < p

    def _delays(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Draws exponential delays of mean delay_s, cut inside the window. A share `late` of them comes after it."""
        delay = 1 + np.minimum(rng.exponential(1000 * self.delay_s, shape), WINDOW_MS - 2)
        return np.where(rng.random(shape) < self.late, WINDOW_MS + delay, delay).astype(np.int64)


def configure(
    seed: int = 0,
    minutes: int = 30,
    history_minutes: int = 30,
    rate: float = 20.0,
    drift: float = 1.0,
    viewers: int = 2000,
    clips: int = 600,
    new_clips: int = 30,
    delay_s: float = 8.0,
    late: float = 0.0,
    expire_minutes: int = 0,
) -> Simulator:
    """Configures a run of `minutes` after `history_minutes`, at `rate` exposures a second of event time.

    `drift` 1 turns a topic's taste in about 60 minutes, 0 never. A run begins with `clips`, and `new_clips` come each
    minute. `delay_s` is the mean time from exposure to outcome, `late` the share of outcomes past the window.
    `expire_minutes`: a clip's row expires after so many minutes without an example (0: never).
    """
    whole = {"minutes": minutes, "history_minutes": history_minutes, "new_clips": new_clips}
    whole["expire_minutes"] = expire_minutes
    positive = {"rate": rate, "viewers": viewers, "clips": clips, "delay_s": delay_s}
    for key, value in (whole | positive | {"seed": seed, "drift": drift}).items():
        if value < 0 or (key in positive and value == 0):
            raise ValueError(f"simulator: {key} is {value}, allowed is {'> 0' if key in positive else '>= 0'}")
    if not 0 <= late <= 1:
        raise ValueError(f"simulator: late is {late}, allowed is 0 to 1")
    return Simulator(
        seed, minutes, history_minutes, rate, drift, viewers, clips, new_clips, delay_s, late, expire_minutes
    )


def _derive(rows: Rows) -> dict[str, list[Any]]:
    """Computes the features of view `derived`; the store may not know the clip or the viewer."""
    born, ts_ms = rows["born"], np.array(rows["ts_ms"], np.float64)
    ages = _age(ts_ms, np.array([at if b is None else b for b, at in zip(born, _minutes(ts_ms), strict=True)]))
    crosses = [_cross(party or 0, topics or []) for party, topics in zip(rows["party"], rows["topics"], strict=True)]
    return {"age": ages, "party_topics": crosses}


def _age(ts_ms: NDArray[Any], born: NDArray[np.float64]) -> list[float]:
    ages: list[float] = np.round(np.log1p(np.maximum(0, _minutes(ts_ms) - born)) / 3, 4).tolist()
    return ages


def _minutes(ts_ms: NDArray[Any]) -> NDArray[np.float64]:
    minutes: NDArray[np.float64] = (ts_ms - START_MS) / 60_000
    return minutes


def _cross(party: int, topics: Sequence[int]) -> list[int]:
    return [100 * party + topic for topic in topics]


def _erf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([math.erf(value) for value in x.ravel()]).reshape(x.shape)
