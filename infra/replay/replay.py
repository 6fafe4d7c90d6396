"""Replays a source's live events against the served model, in event time.

The served model scores each exposure over gRPC, and so does a frozen one to compare with. Then the impression goes to
Kafka. Each outcome follows as an action when its own time has come. Heartbeats tell how far the clock is.
"""

from __future__ import annotations

import argparse
import heapq
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import process
from common.errors import InputError
from infra.replay.pace import Pace, Replicas
from infra.replay.scoring import Scoring, Shown
from infra.replay.send_log import SendLog
from serving.client import Scorer, light
from serving.signatures import RANKER
from streaming.declaration import Declaration
from streaming.event_time import FUTURE_MS, EventTime
from streaming.publisher import Publisher, Stopped, action, impression
from streaming.source import Exposure, load
from streaming.topics import ACTIONS, IMPRESSIONS

TURN_S = 0.1
"""The wall time between two heartbeats."""
TURN_ROWS = 512
"""The most exposures between two heartbeats, however fast the clock runs."""
MOST_TURN_S = 1.0
"""A turn moves the clock on by this time at most: after a stall (a broker restarts) no burst makes up for it."""
HEARTBEAT_MS = FUTURE_MS // 2
"""A turn moves the clock this far past the newest heartbeat at most: the join refuses events that are further ahead."""
REPORT_EVERY_S = 0.5

log = process.logger("replay")


class Replay:
    """Sends the events of `exposures` as their time comes.

    `run` returns True when the last windows have closed, and False if `publisher.stop` was set before.
    """

    def __init__(
        self,
        exposures: Sequence[Exposure],
        declaration: Declaration,
        publisher: Publisher,
        send_log: SendLog,
        scoring: Scoring,
        pace: Pace,
        max_disorder_ms: int,
        stage_file: Path | None = None,
    ) -> None:
        self.exposures, self.publisher, self.send_log = exposures, publisher, send_log
        self.scoring, self.pace, self.stage_file = scoring, pace, stage_file
        self.start_ms = exposures[0].ts_ms
        last = max(max([e.ts_ms + declaration.window_ms, *e.outcomes.values()]) for e in exposures)
        self.end_ms = last + max_disorder_ms + 1  # after this heartbeat the join closes the last window
        self.clock_ms = self._heartbeat_ms = float(self.start_ms - 1)
        self._outcomes: list[tuple[int, int, str, str, float]] = []  # a heap; its first is the next outcome
        self._next = 0  # the first exposure that is not sent
        self._held = False

    def run(self) -> bool:
        try:
            self._loop()
        except Stopped as e:
            log.warning("%s", e)
        self.send_log.close()
        finished = not self.publisher.stop.is_set()
        self._report(finished)
        return finished

    def _loop(self) -> None:
        turned, beat, reported = time.monotonic(), 0.0, 0.0
        while not self.publisher.stop.is_set():
            now = time.monotonic()
            clock_ms = self._limit(self.pace.after(self.clock_ms, min(now - turned, MOST_TURN_S)))
            turned = now
            behind = self._turn(clock_ms)
            if time.monotonic() - beat >= TURN_S or self.clock_ms >= self._heartbeat_ms + HEARTBEAT_MS:
                beat, self._heartbeat_ms = time.monotonic(), self.clock_ms
                self.publisher.heartbeat(int(self.clock_ms))
            if time.monotonic() - reported >= REPORT_EVERY_S:
                reported = time.monotonic()
                self._report()
            if self.clock_ms >= self.end_ms and self._next == len(self.exposures) and not self._outcomes:
                self.publisher.heartbeat(int(self.clock_ms))
                break
            if not behind:
                self.publisher.stop.wait(max(0.0, TURN_S - (time.monotonic() - now)))
        self.publisher.flush()

    def _limit(self, clock_ms: float) -> float:
        """The clock, or where it must stop: at the end, far past a heartbeat, or at the time in the stage file."""
        clock_ms, self._held = min(clock_ms, self.end_ms, self._heartbeat_ms + HEARTBEAT_MS), False
        if self.stage_file is not None:
            text = self.stage_file.read_text().strip() if self.stage_file.exists() else ""
            if text != "end":
                stage_ms = float(text or 0)
                self._held = clock_ms >= stage_ms
                clock_ms = max(self.clock_ms, min(clock_ms, stage_ms))
        return clock_ms

    def _turn(self, clock_ms: float) -> bool:
        """Sends all events up to `clock_ms`, or as many as fit in a turn. Returns True if some are left."""
        first, stop = self._next, self._next
        while stop < len(self.exposures) and self.exposures[stop].ts_ms <= clock_ms and stop - first < TURN_ROWS:
            stop += 1
        behind = stop < len(self.exposures) and self.exposures[stop].ts_ms <= clock_ms
        shown = self.scoring.show(self.exposures[first:stop])
        lineage = self.pace.replicas.lineage(self.scoring.served.replica)
        for one in shown:
            self._act(one.exposure.ts_ms - 1)
            self._show(one, lineage if one.served.scores else "")
        self.send_log.predict_ms += [one.served.ms for one in shown if one.position == 0 and one.served.scores]
        self._next = stop
        # More exposures of the same millisecond may follow, so the clock is certain of the one before only.
        self.clock_ms = max(self.clock_ms, float(self.exposures[stop].ts_ms - 1) if behind else clock_ms)
        self._act(self.clock_ms)
        return behind

    def _show(self, shown: Shown, lineage: str) -> None:
        """Sends an impression, and keeps its outcomes for later."""
        e, served = shown.exposure, shown.served
        event = impression(
            e.impression_id, shown.request_id, e.user_id, e.item_id, e.ts_ms, shown.position, e.features,
            served.scores, lineage, served.seq, read_ms=shown.read_ms,
        )  # fmt: skip
        if self.publisher.send(IMPRESSIONS, event):
            self.send_log.impression(e, served, shown.frozen, lineage)
        for task, ts_ms in e.outcomes.items():
            heapq.heappush(self._outcomes, (ts_ms, self._next, e.impression_id, task, e.values.get(task, 1.0)))

    def _act(self, until_ms: float) -> None:
        """Sends the outcomes up to `until_ms`."""
        while self._outcomes and self._outcomes[0][0] <= until_ms:
            ts_ms, _, impression_id, task, value = heapq.heappop(self._outcomes)
            if self.publisher.send(ACTIONS, action(impression_id, task, ts_ms, value)):
                self.send_log.outcome(impression_id, task, ts_ms)

    def _report(self, finished: bool = False) -> None:
        more: dict[str, Any] = {
            "events": self.publisher.sent,
            "records": self.publisher.sent + self.publisher.heartbeats,
            "refused": self.publisher.refused,
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
            "speed": self.pace.speed,
            "lag_s": round(self.pace.lag_s(self.clock_ms), 2),
            "throttled": self.pace.throttled,
            "held": self._held,
            "finished": finished,
            "wall_ms": time.time_ns() // 1_000_000,
        }
        self.send_log.progress(int(self.clock_ms), more, now=self.publisher.stop.is_set() or finished or self._held)


def between(exposures: Iterator[Exposure], from_ms: int, until_ms: int) -> list[Exposure]:
    """The exposures of [from_ms, until_ms), which must be in event order."""
    chosen = [e for e in exposures if from_ms <= e.ts_ms < until_ms]
    for before, after in zip(chosen, chosen[1:], strict=False):
        if before.ts_ms > after.ts_ms:
            raise ValueError(f"the source is not in event order: {after.impression_id} comes after a later one")
    if not chosen:
        raise ValueError(f"the source has no live exposure from {from_ms} until {until_ms}")
    return chosen


def replay(args: argparse.Namespace) -> int:
    if not args.lease:
        raise InputError("--lease is missing; allowed is the lease of a platform whose event_time is replay")
    if args.features == "feast" and args.feature_folder is None:
        raise InputError("--feature-folder is missing; --features feast needs the folder that features.push fills")
    light()
    source = load(args.source)
    exposures = between(source.live(), args.from_ms, args.until_ms)
    declaration = source.declaration
    span_s = (exposures[-1].ts_ms - exposures[0].ts_ms + declaration.window_ms + args.max_disorder_ms) / 1000
    speed = args.speed or span_s / args.wall_s
    log.info("%d exposures over %.0f s of event time, at %.1f times their pace", len(exposures), span_s, speed)
    features = None
    if args.features == "feast" or args.features is None and args.feature_folder:
        from features.store import Features

        features = Features(args.feature_folder, args.source)
    addresses = args.serving.split(",")
    frozen = Scorer(addresses, args.frozen, declaration) if args.frozen != "none" else None
    scoring = Scoring(Scorer(addresses, RANKER, declaration), frozen, features)
    replicas = Replicas(addresses, declaration, exposures[0].ts_ms)
    pace = Pace(replicas, speed, args.sync_every_ms / 1000, args.max_disorder_ms)
    with Publisher(args.kafka, declaration, "minutehand-replay", args.lease) as publisher:
        process.stopping(publisher.stop.set)
        send_log = SendLog(args.out, declaration)
        replay = Replay(
            exposures, declaration, publisher, send_log, scoring, pace, args.max_disorder_ms, args.stage_file
        )
        finished = replay.run()
        replicas.close()
    scoring.close()
    log.info("%s: %d events sent, %d refused", "done" if finished else "stopped", publisher.sent, publisher.refused)
    return process.DONE if finished else process.INTERRUPTED


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("infra.replay.replay", __doc__ or "")
    parser.shared("source", "kafka")
    add = parser.add_argument
    add("--serving", required=True, metavar="H:P[,H:P]", help="gRPC addresses of the model server's replicas")
    add("--out", required=True, type=Path, metavar="DIR", help="where the send log goes; a former one is replaced")
    EventTime.arguments(parser)
    add("--frozen", default="none", metavar="MODEL", help="a model to compare with, such as frozen (default: none)")
    whose = "whose features are scored and logged (default: feast if --feature-folder is given, else source)"
    add("--features", choices=("source", "feast"), help=whose)
    add("--feature-folder", type=Path, metavar="DIR", help="with feast: the folder that features.push fills")
    lag = "the platform's sync_every: the loop lags when it is more than one sync behind (default: %(default)s)"
    add("--sync-every-ms", type=process.above(0), default=60_000, metavar="MS", help=lag)
    pace = parser.add_mutually_exclusive_group()
    wall = "how long the replay takes (default: %(default)s)"
    pace.add_argument("--wall-s", type=process.above(0.0), default=420.0, metavar="S", help=wall)
    pace.add_argument("--speed", type=process.above(0.0), help="event time over wall time, in place of --wall-s")
    add("--from-ms", type=int, default=0, help="only exposures from this event time on")
    add("--until-ms", type=int, default=2**62, help="only exposures before this event time")
    add("--stage-file", type=Path, help="a file with the event time the clock may go to, or `end`; may be rewritten")
    args = parser.parse_args(argv)
    return process.run(lambda: replay(args))


if __name__ == "__main__":
    sys.exit(main())
