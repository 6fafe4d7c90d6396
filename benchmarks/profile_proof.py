"""Proves that the profile store counts right while it is written and compacted, and after any kill.

    python -m benchmarks.profile_proof [--samples 100000] [--kills 200]

Samples: four streams add, one writer commits and compacts, and this process reads samples (profile, slot, window,
time). Each answer is compared with a count of the raw events up to the read's own snapshot. Kills: the writer
is killed at random instants, and what the store holds is compared with the raw events up to its positions. Prints a
line of JSON for each; a difference ends it with an error.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from common import process  # noqa: E402
from common.errors import InputError, Refused  # noqa: E402
from features.profile.fold import Fold  # noqa: E402
from features.profile.query import Query  # noqa: E402
from features.profile.store import Profiles  # noqa: E402
from streaming.slots import DAY_MS, HOUR_MS, MINUTE_MS, Slot, Slots  # noqa: E402
from tests.support.profile_oracle import DECLARED, Event, adds, answered, drawn, expected, same  # noqa: E402

SLOTS = Slots((*DECLARED.slots, Slot("position", "user", windows=("all",))), DECLARED.actions)
POSITION = len(DECLARED.slots)
STREAMS, BATCH, PROFILES, FEATURES = 4, 60, 800, 300
STEP_MS = 40 * MINUTE_MS
"""Event time from batch to batch of a stream."""
FILLED = 30
"""Batches of each stream that are there before the first read."""
BEGIN_MS = 1_790_000_000_000


def clock_ms(batch: int) -> int:
    return BEGIN_MS + batch * STEP_MS


def batch_of(stream: int, batch: int) -> list[Event]:
    """The events of one batch of a stream: most are new, some are late by up to three days."""
    rng = np.random.default_rng((stream, batch))
    now_ms = clock_ms(batch)
    late = drawn(rng, BATCH // 6, now_ms - 3 * DAY_MS, now_ms, PROFILES, FEATURES)
    return late + drawn(rng, BATCH - len(late), now_ms - STEP_MS, now_ms, PROFILES, FEATURES)


OPENING, ADDING, FOLDING = range(3)


def write(folder: Path, state: mmap.mmap) -> None:
    """Adds the four streams from their positions on, and compacts beside, for ever. `state[0]`: what it does."""
    fold = Fold.fold

    def marked(self: Fold, buckets: Sequence[int], *, sweep: bool) -> None:
        state[0] = FOLDING
        fold(self, buckets, sweep=sweep)
        state[0] = ADDING

    Fold.fold = marked  # type: ignore[method-assign]
    with Profiles(folder, SLOTS, writes=True) as store:
        state[0] = ADDING
        begins = [store.positions().get(str(stream), 0) for stream in range(STREAMS)]
        clocks = [clock_ms(begin) for begin in begins]

        def run(stream: int) -> None:
            batch = begins[stream]
            while True:
                events = batch_of(stream, batch)
                mark = Event(POSITION, -1 - stream, 0, BEGIN_MS, 0, 1)
                with store.writing() as commit:
                    commit.add(adds([*events, mark]))
                    commit.positions({str(stream): batch + 1})
                batch += 1
                clocks[stream] = clock_ms(batch)
                while clocks[stream] > min(clocks) + 2 * STEP_MS:  # streams keep together
                    time.sleep(0.001)

        for stream in range(STREAMS):
            threading.Thread(target=run, args=(stream,), daemon=True).start()
        while True:
            store.compact(min(clocks), 20)
            time.sleep(0.002)


def started(folder: Path, state: mmap.mmap) -> int:
    """The pid of a process that writes and has begun to. It is forked while this one has no threads."""
    state[0] = OPENING
    pid = os.fork()
    if not pid:
        try:
            write(folder, state)
        finally:
            os._exit(1)
    while state[0] == OPENING:
        time.sleep(0.001)
    return pid


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WTERMSIG(status) != signal.SIGKILL:
        raise Refused(f"the writer ended by itself: status {status}")


class Log:
    """The raw events of the streams, made again from their numbers, by profile and slot."""

    def __init__(self) -> None:
        self._made = [0] * STREAMS
        self._events: dict[tuple[int, int], list[tuple[int, int, Event]]] = defaultdict(list)

    def events(self, slot: int, profile: int, upto: list[int]) -> list[Event]:
        """Those of one profile's slot in the first `upto` batches of each stream."""
        for stream, batches in enumerate(upto):
            for batch in range(self._made[stream], batches):
                for event in batch_of(stream, batch):
                    self._events[event.slot, event.profile].append((stream, batch, event))
            self._made[stream] = max(batches, self._made[stream])
        return [event for stream, batch, event in self._events[slot, profile] if batch < upto[stream]]


def any_query(draw: random.Random) -> Query:
    slot = draw.choice(DECLARED.slots)
    window = draw.choice(slot.windows)
    action = draw.choice([None, *DECLARED.actions])
    by = draw.choice([*DECLARED.actions, "time"])
    half_life_ms = draw.choice([None, None, 6 * HOUR_MS]) if window != "all" and by == "time" else None
    return Query(slot.name, window, by, draw.choice([None, 10, 50]), action, half_life_ms)


def sample(store: Profiles, draw: random.Random, batch: int, at_once: int) -> Any:
    """Reads one query for some profiles. Returns the query, the profiles, the time, the snapshot and the answers."""
    query = any_query(draw)
    entity = next(slot.entity for slot in DECLARED.slots if slot.name == query.slot)
    now_ms = clock_ms(batch) + draw.choice(
        [draw.randint(-20 * MINUTE_MS, HOUR_MS), draw.randint(0, DAY_MS), draw.randint(0, 8 * DAY_MS)]
    )
    profiles = [draw.choice([draw.randrange(10), draw.randrange(PROFILES)]) for _ in range(at_once)]
    if entity == "item":  # the positions are the users': read before and after, until nothing came between
        before = upto(store, now_ms)
        (answer,) = store.read(entity, profiles, [query], now_ms)
        snapshot = upto(store, now_ms)
        if before != snapshot:
            return None
    else:
        marks = [-1 - stream for stream in range(STREAMS)]
        queries = [query, Query("position", "all")]
        answer, marked = store.read(entity, [*profiles, *marks], queries, now_ms)
        snapshot = positions(marked, len(profiles))
    return query, profiles, now_ms, snapshot, [answered(answer, place) for place in range(len(profiles))]


def upto(store: Profiles, now_ms: int) -> list[int]:
    marks = [-1 - stream for stream in range(STREAMS)]
    (marked,) = store.read("user", marks, [Query("position", "all")], now_ms)
    return positions(marked, 0)


def positions(marked: Any, first: int) -> list[int]:
    found = [answered(marked, first + stream) for stream in range(STREAMS)]
    return [int(rows[0][1][0]) if rows else 0 for rows in found]


def equality(samples: int, seed: int) -> dict[str, Any]:
    """Reads while the writer runs, then counts the raw events. Raises Refused at the first difference."""
    draw, taken, behind, moved = random.Random(seed), [], 0, 0
    with tempfile.TemporaryDirectory(prefix="minutehand-profiles-") as name:
        pid = started(Path(name), mmap.mmap(-1, 1))
        try:
            with Profiles(Path(name), SLOTS) as store:
                while min(snapshot := [store.positions().get(str(stream), 0) for stream in range(STREAMS)]) < FILLED:
                    time.sleep(0.01)
                n, at_once = 0, 20
                while n < samples:
                    try:
                        one = sample(store, draw, min(snapshot), at_once)
                    except InputError:  # the clock went on
                        behind += 1
                        snapshot = [store.positions().get(str(stream), 0) for stream in range(STREAMS)]
                        continue
                    if one is None:
                        moved += 1
                        continue
                    taken.append(one)
                    snapshot, n = one[3], n + at_once
        finally:
            killed(pid)
        log = Log()
        filled = 0
        for query, profiles, now_ms, snapshot, answers in taken:
            for profile, answer in zip(profiles, answers, strict=True):
                slot = [s.name for s in DECLARED.slots].index(query.slot)
                right = expected(log.events(slot, profile, snapshot), query, profile, now_ms)
                filled += bool(right)
                if not same(answer, right):
                    raise Refused(f"{query} of {profile} at {now_ms}, {snapshot}: {answer}, counted {right}")
        return {
            "samples": len(taken) * at_once, "not_empty": filled, "differences": 0, "retried_behind": behind,
            "retried_moved": moved, "events": sum(taken[-1][3]) * BATCH,
            "days": round(min(taken[-1][3]) * STEP_MS / DAY_MS, 1),
        }  # fmt: skip


def kills(times: int, seed: int) -> dict[str, Any]:
    """Kills the writer at random instants and compares after each kill. Raises Refused at the first difference."""
    draw, log, folding, state = random.Random(seed), Log(), 0, mmap.mmap(-1, 1)
    with tempfile.TemporaryDirectory(prefix="minutehand-profiles-") as name:
        for kill in range(times):
            pid = started(Path(name), state)
            time.sleep(draw.uniform(0, 0.25))
            if kill % 2:
                _wait_for_fold(state, draw.uniform(0, 0.005))
            killed(pid)
            folding += state[0] == FOLDING
            with Profiles(Path(name), SLOTS, writes=True) as store:
                committed = [store.positions().get(str(stream), 0) for stream in range(STREAMS)]
                now_ms = clock_ms(max(committed))
                if upto(store, now_ms) != committed:
                    raise Refused(f"kill {kill}: counted {upto(store, now_ms)} batches, positions are {committed}")
                profiles = range(PROFILES) if kill == times - 1 else draw.sample(range(PROFILES), 40)
                compare(store, log, profiles, committed, now_ms, kill)
        events, days = sum(committed) * BATCH, min(committed) * STEP_MS / DAY_MS
        return {"kills": times, "folding": folding, "differences": 0, "events": events, "days": round(days, 1)}


def _wait_for_fold(state: mmap.mmap, then_s: float) -> None:
    end = time.monotonic() + 1
    while state[0] != FOLDING and time.monotonic() < end:
        time.sleep(0.0002)
    time.sleep(then_s)


def compare(store: Profiles, log: Log, profiles: Any, committed: list[int], now_ms: int, kill: int) -> None:
    for slot, declared in enumerate(DECLARED.slots):
        query = Query(declared.name, declared.windows[-1])
        (answer,) = store.read(declared.entity, profiles, [query], now_ms)
        for place, profile in enumerate(profiles):
            right = expected(log.events(slot, profile, committed), query, profile, now_ms)
            if not same(answered(answer, place), right):
                raise Refused(f"kill {kill}: {query} of {profile}: {answered(answer, place)}, counted {right}")


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.profile_proof", __doc__)
    parser.add_argument("--samples", type=process.at_least(0), default=100_000, help="(default: %(default)s)")
    parser.add_argument("--kills", type=process.at_least(0), default=200, help="(default: %(default)s)")
    parser.add_argument("--seed", type=process.at_least(0), default=0)
    args: argparse.Namespace = parser.parse_args(argv)

    def prove() -> None:
        for proof, times in ((equality, args.samples), (kills, args.kills)):
            if times:
                print(json.dumps({proof.__name__: proof(times, args.seed)}), flush=True)

    return process.run(prove)


if __name__ == "__main__":
    raise SystemExit(main())
