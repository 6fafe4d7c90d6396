"""Replays a source's live events against the served model, in event time.

Each exposure is scored by the served model over gRPC (and by a frozen one, to compare), then written to `impressions`;
each outcome is written to `actions` when its own time has come; heartbeats follow. The clock slows down while the loop
lags.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.replay.send_log import SendLog
from serving.client import DEADLINE_S, PredictionFailed, Scorer, light
from serving.signatures import RANKER
from streaming.declaration import Declaration
from streaming.publisher import Publisher, Stopped, action, impression
from streaming.source import Exposure, load
from streaming.topics import ACTIONS, IMPRESSIONS

if TYPE_CHECKING:
    from features.store import Features

TURN_S = 0.1
"""The pace of heartbeats, in wall time."""
_TURN_ROWS = 512
"""At most so many exposures between two heartbeats, however fast the clock."""
_SLOW = 0.1
"""The pace while the loop lags: slow, not still. A loop without events writes no delta and would never catch up."""
_ALLOWANCE_S = 2.0

log = logging.getLogger("replay")


class Scored(NamedTuple):
    """What one model said of one exposure; without scores it failed."""

    scores: dict[str, float]
    seq: int
    predict_ms: float


_FAILED = Scored({}, -1, 1000 * DEADLINE_S)


def requests(exposures: Sequence[Exposure]) -> list[list[int]]:
    """The places of each user's exposures, users in the order of their first one: a Predict call each."""
    by_user: dict[int, list[int]] = {}
    for place, exposure in enumerate(exposures):
        by_user.setdefault(exposure.user_id, []).append(place)
    return list(by_user.values())


def score(scorer: Scorer, exposures: Sequence[Exposure], calls: Sequence[Sequence[int]]) -> list[Scored]:
    """Each exposure's scores; a call that has no answer within the scorer's deadline leaves its exposures unscored."""
    scored = [_FAILED] * len(exposures)
    for places in calls:
        begun = time.perf_counter()
        try:
            tasks, seq = scorer.score([exposures[k].features for k in places])
        except PredictionFailed as e:
            log.warning("prediction failed: %s", e)
            continue
        took_ms = 1000 * (time.perf_counter() - begun)
        for row, k in enumerate(places):
            scored[k] = Scored({task: values[row] for task, values in tasks.items()}, seq, took_ms)
    return scored


class Lag:
    """Asks each replica's `status` twice a second, aside: where the slowest stands, and each one's lineage."""

    def __init__(self, addresses: Sequence[str], declaration: Declaration, start_ms: int) -> None:
        self._scorer = Scorer(addresses, RANKER, declaration)
        self._learned = [start_ms] * len(addresses)
        self._lineage = [""] * len(addresses)
        self._stop = threading.Event()
        self._ask()
        self._thread = threading.Thread(target=self._watch, name="lag", daemon=True)
        self._thread.start()

    @property
    def learned_until_ms(self) -> int:
        """Of the slowest replica; one that does not answer stands where it last stood."""
        return min(self._learned)

    def lineage(self, replica: int) -> str:
        return self._lineage[replica]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._scorer.close()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._ask()

    def _ask(self) -> None:
        for replica in range(len(self._learned)):
            try:
                status = self._scorer.status(replica)
            except PredictionFailed:
                continue
            self._learned[replica] = max(self._learned[replica], int(status["learned_until_ms"]))
            self._lineage[replica] = str(status["lineage"])


class Replay:
    """One run. `run` returns True when the last windows have closed, False when it was stopped before."""

    def __init__(
        self,
        exposures: Sequence[Exposure],
        declaration: Declaration,
        publisher: Publisher,
        sendlog: SendLog,
        served: Scorer,
        frozen: Scorer | None,
        lag: Lag,
        *,
        speed: float,
        sync_every_s: float,
        stage_file: Path | None = None,
        features: Features | None = None,
    ) -> None:
        self.features = features
        self.exposures, self.declaration = exposures, declaration
        self.publisher, self.sendlog, self.lag = publisher, sendlog, lag
        self.served, self.frozen = served, frozen
        self.speed, self.sync_every_s, self.stage_file = speed, sync_every_s, stage_file
        self.start_ms = exposures[0].ts_ms
        last = max(e.ts_ms + declaration.window_ms for e in exposures)
        last = max([last, *(t for e in exposures for t in e.outcomes.values())])
        # The heartbeat behind which the join has closed the last window.
        self.end_ms = last + declaration.max_disorder_ms + 1
        self.clock_ms = float(self.start_ms - 1)
        self.stop = publisher.stop
        self._outcomes: list[tuple[int, int, str, str]] = []
        self._next = 0
        self._throttled = self._held = False
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="score")

    def run(self) -> bool:
        try:
            self._loop()
        except Stopped as e:
            log.warning("%s", e)
        self.sendlog.close()
        finished = not self.stop.is_set()
        self._tell(finished)
        self._pool.shutdown()
        return finished

    def _loop(self) -> None:
        turned, beat, told = time.monotonic(), 0.0, 0.0
        while not self.stop.is_set():
            now = time.monotonic()
            # A stall (a broker that restarts, a failed prediction) is not made up for by a burst.
            target = self._target(self.clock_ms + 1000 * min(now - turned, 1.0) * self.speed * self._pace())
            turned = now
            behind = self._turn(target)
            if time.monotonic() - beat >= TURN_S:
                beat = time.monotonic()
                self.publisher.heartbeat(int(self.clock_ms))
            if time.monotonic() - told >= 0.5:
                told = time.monotonic()
                self._tell()
            if self.clock_ms >= self.end_ms and self._next == len(self.exposures) and not self._outcomes:
                self.publisher.heartbeat(int(self.clock_ms))
                break
            if not behind:
                self.stop.wait(max(0.0, TURN_S - (time.monotonic() - now)))
        self.publisher.flush()

    @property
    def lag_s(self) -> float:
        """How long ago, in wall time, the clock stood where the slowest replica has learned to."""
        return max(0.0, (self.clock_ms - self.lag.learned_until_ms) / 1000 / self.speed)

    def _pace(self) -> float:
        # A loop in health is up to one sync behind, and the time a delta takes. One sync more is a lag.
        limit_s = 2 * self.sync_every_s + _ALLOWANCE_S + self.declaration.max_disorder_ms / 1000 / self.speed
        lag_s = self.lag_s
        if not self._throttled and lag_s > limit_s:
            self._throttled = True
            log.warning("the loop is %.1f s behind (one sync is %.1f s): slowing down", lag_s, self.sync_every_s)
        elif self._throttled and lag_s < limit_s / 2:
            self._throttled = False
            log.info("the loop has caught up (%.1f s behind): full pace again", lag_s)
        return _SLOW if self._throttled else 1.0

    def _target(self, target: float) -> float:
        """Where the clock may go: to the end, or to the stage that a test allows."""
        target, self._held = min(target, self.end_ms), False
        if self.stage_file is not None:
            try:
                text = self.stage_file.read_text().strip()
            except FileNotFoundError:
                text = "0"
            if text != "end":
                self._held = target >= float(text or 0)
                target = max(self.clock_ms, min(target, float(text or 0)))
        return target

    def _turn(self, target: float) -> bool:
        """Sends all events up to `target`, or as many as fit in a turn; True if some are left."""
        first, stop = self._next, self._next
        while stop < len(self.exposures) and stop - first < _TURN_ROWS and self.exposures[stop].ts_ms <= target:
            stop += 1
        behind = stop < len(self.exposures) and self.exposures[stop].ts_ms <= target
        shown = list(self.exposures[first:stop])
        calls = requests(shown)
        read_ms = self._read(shown, calls)
        asked = self._pool.map(lambda s: score(s, shown, calls) if s else None, (self.served, self.frozen))
        served_by, frozen_by = (answers or [_FAILED] * len(shown) for answers in asked)
        place = {k: (shown[call[0]].impression_id, position) for call in calls for position, k in enumerate(call)}
        lineage = self.lag.lineage(self.served.replica)
        for k, (exposure, served, frozen) in enumerate(zip(shown, served_by, frozen_by, strict=True)):
            self._act(exposure.ts_ms - 1)
            self._show(exposure, served, frozen, lineage if served.scores else "", *place[k], read_ms[k])
        self.sendlog.predict_ms += [served_by[call[0]].predict_ms for call in calls if served_by[call[0]].scores]
        self._next = stop
        # Exposures of the same millisecond may be left: only the one before is behind us for certain.
        self.clock_ms = max(self.clock_ms, float(self.exposures[stop].ts_ms - 1) if behind else target)
        self._act(self.clock_ms)
        return behind

    def _read(self, shown: list[Exposure], calls: Sequence[Sequence[int]]) -> list[int]:
        """Puts what the feature store says in place of the source's features; when it was read (0: it was not)."""
        read_ms = [0] * len(shown)
        if self.features is not None:
            for places in calls:
                asked = [shown[k] for k in places]
                rows, at_ms = self.features.read(
                    asked[0].user_id, [e.item_id for e in asked], [e.ts_ms for e in asked], [e.features for e in asked]
                )
                for k, row in zip(places, rows, strict=True):
                    shown[k], read_ms[k] = shown[k]._replace(features=row), at_ms
        return read_ms

    def _show(
        self,
        exposure: Exposure,
        served: Scored,
        frozen: Scored,
        lineage: str,
        request_id: str,
        position: int,
        read_ms: int,
    ) -> None:
        e = exposure
        event = impression(
            e.impression_id, request_id, e.user_id, e.item_id, e.ts_ms, position, e.features, served.scores, lineage,
            served.seq, read_ms=read_ms,
        )  # fmt: skip
        if self.publisher.send(IMPRESSIONS, event):
            self.sendlog.impression(e, served.scores, frozen.scores, served.seq, lineage, served.predict_ms)
        for task, ts_ms in e.outcomes.items():
            heapq.heappush(self._outcomes, (ts_ms, self._next, e.impression_id, task))

    def _act(self, until_ms: float) -> None:
        while self._outcomes and self._outcomes[0][0] <= until_ms:
            ts_ms, _, impression_id, task = heapq.heappop(self._outcomes)
            if self.publisher.send(ACTIONS, action(impression_id, task, ts_ms)):
                self.sendlog.outcome(impression_id, task, ts_ms)

    def _tell(self, finished: bool = False) -> None:
        more: dict[str, Any] = {
            "events": self.publisher.sent,
            "records": self.publisher.sent + self.publisher.heartbeats,
            "refused": self.publisher.refused,
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
            "speed": self.speed,
            "lag_s": round(self.lag_s, 2),
            "throttled": self._throttled,
            "held": self._held,
            "finished": finished,
            "wall_ms": time.time_ns() // 1_000_000,
        }
        self.sendlog.progress(int(self.clock_ms), more, now=self.stop.is_set() or finished or self._held)


def between(exposures: Iterator[Exposure], from_ms: int, until_ms: int) -> list[Exposure]:
    """The exposures of [from_ms, until_ms), which must be in event order."""
    kept = [e for e in exposures if from_ms <= e.ts_ms < until_ms]
    for before, after in zip(kept, kept[1:], strict=False):
        if before.ts_ms > after.ts_ms:
            raise ValueError(f"the source is not in event order: {after.impression_id} comes after a later one")
    if not kept:
        raise ValueError(f"the source has no live exposure from {from_ms} until {until_ms}")
    return kept


def main() -> None:
    args = _arguments()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    # It reports each attempt while a broker restarts; what cannot be sent in the end is raised.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    light()
    source = load(args.source)
    exposures = between(source.live(), args.from_ms, args.until_ms)
    declaration = source.declaration
    span_s = (exposures[-1].ts_ms - exposures[0].ts_ms + declaration.window_ms + declaration.max_disorder_ms) / 1000
    speed = args.speed or span_s / args.wall_s
    log.info("%d exposures over %.0f s of event time, at %.1f times their pace", len(exposures), span_s, speed)
    features = None
    if args.features == "feast":
        from features.store import Features

        features = Features(args.feature_folder, args.source)
    addresses = args.serving.split(",")
    served = Scorer(addresses, RANKER, declaration)
    frozen = Scorer(addresses, args.frozen, declaration) if args.frozen != "none" else None
    lag = Lag(addresses, declaration, exposures[0].ts_ms)
    with Publisher(args.kafka, declaration, "minutehand-replay") as publisher:
        replay = Replay(
            exposures, declaration, publisher, SendLog(args.out, declaration), served, frozen, lag,
            speed=speed, sync_every_s=args.sync_every_ms / 1000, stage_file=args.stage_file, features=features,
        )  # fmt: skip
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: replay.stop.set())
        finished = replay.run()
        lag.close()
    log.info("%s: %d events sent, %d refused", "done" if finished else "stopped", publisher.sent, publisher.refused)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("infra.replay.replay", description=__doc__)
    add = parser.add_argument
    add("--source", required=True, metavar="S", help="kuairand, simulator?seed=7, a dotted module or a .py file")
    add("--kafka", required=True, metavar="H:P", help="the broker's address")
    add("--serving", required=True, metavar="H:P[,H:P]", help="gRPC addresses of the model server's replicas")
    add("--out", required=True, type=Path, metavar="DIR", help="where the send log goes; a former one is replaced")
    add("--frozen", default="none", metavar="MODEL", help="a model to compare with, such as frozen (default: none)")
    add("--features", choices=("source", "feast"), default="source", help="whose features are scored and logged")
    add("--feature-folder", type=Path, metavar="DIR", help="with feast: the folder that features.push fills")
    add("--sync-every-ms", type=int, default=60_000, help="the loop's dial: more than one sync behind is a lag")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--wall-s", type=float, default=420.0, help="how long the replay takes (default: %(default)s)")
    pace.add_argument("--speed", type=float, help="event time over wall time, in place of --wall-s")
    add("--from-ms", type=int, default=0, help="only exposures from this event time on")
    add("--until-ms", type=int, default=2**62, help="only exposures before this event time")
    add("--stage-file", type=Path, help="a file with the event time the clock may go to, or `end`; may be rewritten")
    args = parser.parse_args()
    if args.features == "feast" and args.feature_folder is None:
        parser.error("--feature-folder is not given; --features feast needs the folder that features.push fills")
    for name in ("wall_s", "speed", "sync_every_ms"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} is {value}, allowed is > 0")
    return args


if __name__ == "__main__":
    main()
