"""Measures the capacity of the whole loop: the highest rate of events at which every part keeps up on this machine.

    python -m benchmarks.loop                                        # both modes, about a quarter of an hour
    python -m benchmarks.loop --mode ingest --rates 3000,6000 --seconds 30 --step-s 15 --out build/loop.json

It starts a platform as `minutehand up` does, with all services but Airflow, and sends it events of now from a process
of its own (benchmarks/load/events.py). `ingest`: nothing is scored. `scored`: the model server scores each impression
before it is shown, in lists of ten.

The rates climb. A step passes if the load kept its rate, no part is more than BEHIND_S seconds of events behind at its
end, and no score failed. The highest rate that passes runs for --seconds; there the p99 of freshness, from an action's
time in Kafka to the served model, must not exceed sync_every + 3 s, too. If it does not pass, the next lower rate runs.

It prints a table of each step and writes benchmarks/results/loop.json: the rates, the microseconds of processor time
an event of each part, and its share of the loop's (`cpu_share_max` is the largest). The load's own is apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.common.figures import commit, machine  # noqa: E402
from benchmarks.load.parts import Parts, cpu_of  # noqa: E402
from common import process  # noqa: E402
from common.errors import InputError  # noqa: E402
from infra.layout import model_server  # noqa: E402
from infra.platform import Platform  # noqa: E402
from infra.replay.live import read_lines  # noqa: E402
from infra.replay.report import freshness, weighted_percentiles  # noqa: E402
from infra.services import python  # noqa: E402
from infra.settings import Settings  # noqa: E402
from infra.supervise.processes import child  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "loop.json"
SOURCE = "simulator?seed=1&minutes=1&history_minutes=1&rate=180&viewers=100000&clips=10000&delay_s=5"
MODES = ("ingest", "scored")
GOALS = {"events_per_s": 6000, "scored_events_per_s": 1500, "cpu_share_max": 1 / 3}
RATES = {"ingest": "3000,4000,5000,6000,7000,8000", "scored": "1000,1500,2000,2500,3000"}
WARM_S = 70
"""Longer than the source's window and its disorder: then examples of closed windows come as fast as events."""
BEHIND_S, FRESH_S = 3.0, 3.0
LOST = 4
"""A step ends when a part is so many times BEHIND_S behind: it does not catch up any more."""
console = Console()


class Load:
    """The process that sends events."""

    def __init__(self, running: subprocess.Popen[bytes]) -> None:
        self._process = running
        self.pid = running.pid
        self._answer()

    def rate(self, events_per_s: float) -> dict[str, float]:
        """Sets the rate. Returns what was sent since the rate before."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%f\n" % events_per_s)
        self._process.stdin.flush()
        counts: dict[str, float] = json.loads(self._answer())
        return counts

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise InputError("the load has ended: see above")
        return line


def step(platform: Platform, load: Load, rate: float, seconds: float) -> dict[str, Any]:
    """Sends `rate` events a second for `seconds`, and judges every part."""
    parts = Parts(platform)
    load.rate(rate)
    begun_ms, begun, before, load_s = time.time() * 1000, time.monotonic(), parts.cpu_s(), cpu_of(load.pid)
    most = dict.fromkeys(parts.lags(), 0.0)
    while (rest := begun + seconds - time.monotonic()) > 0:
        time.sleep(min(5.0, rest))
        lags = parts.lags()
        most = {name: max(lag, most.get(name, 0.0)) for name, lag in lags.items()}
        if max(lags.values()) > LOST * BEHIND_S * rate:
            break
    counts = load.rate(rate)
    took_s = time.monotonic() - begun
    cpu_s = {name: s - before[name] for name, s in parts.cpu_s().items() if name in before}
    load_s = cpu_of(load.pid) - load_s
    sent = counts["impressions"] + counts["actions"]
    lines = [c for c in read_lines(platform.layout.confirmations(0)) if c["confirmed_ms"] >= begun_ms]
    total_s = sum(cpu_s.values())
    return {
        "rate": rate,
        "seconds": round(took_s, 1),
        "events": int(sent),
        "events_per_s": round(sent / took_s),
        "impressions_per_s": round(counts["impressions"] / took_s),
        "us_per_event": {name: round(1e6 * s / sent, 1) for name, s in sorted(cpu_s.items(), key=lambda p: -p[1])},
        "us_per_event_sum": round(1e6 * total_s / sent, 1),
        "load_us_per_event": round(1e6 * load_s / sent, 1),
        "cores": {name: round(s / took_s, 3) for name, s in cpu_s.items()},
        "load_cores": round(load_s / took_s, 3),
        "share": {name: round(s / total_s, 3) for name, s in cpu_s.items()},
        "lag_records": {name: round(lag) for name, lag in lags.items()},
        "lag_records_max": {name: round(lag) for name, lag in most.items()},
        "freshness_s": weighted_percentiles(freshness(lines, "positive"), (50, 99)),
        "score_ms": {name: round(counts[name], 1) for name in ("p50_ms", "p99_ms")},
        "failed_scores": int(counts["failed"]),
    }


def gives_way(figures: dict[str, Any], sync_every_s: float) -> str:
    """The part that does not keep up, and why; "" if all do."""
    rate = figures["rate"]
    if figures["failed_scores"]:
        return f"{model_server(0)}: {figures['failed_scores']} requests failed"
    name, lag = max(figures["lag_records"].items(), key=lambda pair: pair[1])
    if lag > BEHIND_S * rate:
        return f"{name}: {lag} records behind"
    if figures["events_per_s"] < 0.97 * rate:
        late = model_server(0) if figures["score_ms"]["p99_ms"] > 1000 else "load"
        return f"{late}: {figures['events_per_s']} events/s sent"
    p99 = figures["freshness_s"]["p99"]
    if p99 is not None and p99 > sync_every_s + FRESH_S:
        return f"freshness: p99 is {p99:.1f} s"
    return ""


def shown(mode: str, figures: dict[str, Any]) -> None:
    """Prints a step's table."""
    verdict = figures["gives_way"] or "keeps up"
    title = f"{mode}, {figures['rate']:g} events/s for {figures['seconds']:g} s: {verdict}"
    table = Table("part", "us/event", "cores", "share", "lag", title=title, title_justify="left")
    for name, us in figures["us_per_event"].items():
        lag = str(figures["lag_records"].get(name, ""))
        table.add_row(name, f"{us:g}", f"{figures['cores'][name]:.2f}", f"{figures['share'][name]:.2f}", lag)
    table.add_row("sum", f"{figures['us_per_event_sum']:g}", f"{sum(figures['cores'].values()):.2f}")
    table.add_row("load", f"{figures['load_us_per_event']:g}", f"{figures['load_cores']:.2f}")
    console.print(table)


def settle(platform: Platform, within_s: float = 60.0) -> None:
    """Waits until no part is behind: the step before may have been too fast."""
    parts, deadline = Parts(platform), time.monotonic() + within_s
    while any(lag > 2000 for lag in parts.lags().values()) and time.monotonic() < deadline:
        time.sleep(1)


def climb(mode: str, platform: Platform, load: Load, rates: list[float], args: argparse.Namespace) -> dict[str, Any]:
    """The steps of a mode, and its result: that of the highest rate that passed for `args.seconds`."""
    steps: list[dict[str, Any]] = []

    def tried(rate: float, seconds: float) -> bool:
        figures = step(platform, load, rate, seconds)
        figures["gives_way"] = gives_way(figures, args.sync_every)
        shown(mode, figures)
        steps.append(figures)
        return not figures["gives_way"]

    def rest() -> None:
        load.rate(0.0)
        settle(platform)
        load.rate(passed[-1])

    console.print(f"{mode}: {rates[0]:g} events/s for {args.warm_s:g} s to begin with")
    load.rate(rates[0])
    time.sleep(args.warm_s)
    passed = []
    for rate in rates:
        if not tried(rate, args.step_s):
            break
        passed.append(rate)
    while passed:
        if steps[-1]["gives_way"]:
            rest()
        if tried(passed[-1], args.seconds):
            break
        passed.pop()
    load.rate(0.0)
    best = steps[-1] if passed else None
    higher = [s["gives_way"] for s in steps if s["gives_way"]]
    return {"best": best, "first_to_give_way": higher[-1] if higher else "", "steps": steps}


def measure(args: argparse.Namespace) -> None:
    modes = MODES if args.mode == "both" else (args.mode,)
    with tempfile.TemporaryDirectory(prefix="minutehand-loop-") as folder:
        ports = {name: 0 for name in Settings.model_fields if name.endswith("_port")}
        settings = Settings(
            name="loop", var=folder, source=args.source, airflow=False, sync_every=args.sync_every, max_disorder="5s",
            **ports,
        )  # fmt: skip
        with Platform(settings) as platform:
            console.print("the platform starts")
            platform.start()
            results = {mode: under_load(mode, platform, args) for mode in modes}
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.loop", *sys.argv[1:]]),
        "machine": machine(),
        "load": round(os.getloadavg()[0], 1),
        "source": args.source,
        "sync_every_s": args.sync_every,
        "summary": summary(results),
        "goals": GOALS,
        **results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    console.print_json(json.dumps(result["summary"]))


def under_load(mode: str, platform: Platform, args: argparse.Namespace) -> dict[str, Any]:
    serving = platform.address(model_server(0)) if mode == "scored" else "none"
    command = python("benchmarks.load.events", args.source, platform.address("kafka"), serving)
    rates = sorted(float(rate) for rate in (args.rates or RATES[mode]).split(","))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with child(command, cwd=ROOT, **pipes) as running:
        return climb(mode, platform, Load(running), rates, args)


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that the goals are about, of each mode's best step."""
    best = {mode: result["best"] for mode, result in results.items() if result["best"]}
    figures: dict[str, Any] = {}
    for mode, name in zip(MODES, ("events_per_s", "scored_events_per_s"), strict=True):
        figures[name] = best[mode]["events_per_s"] if mode in best else None
    figures["freshness_p99_s"] = {mode: figures["freshness_s"]["p99"] for mode, figures in best.items()}
    figures["first_to_give_way"] = {mode: result["first_to_give_way"] for mode, result in results.items()}
    figures["cpu_share_max"] = max((max(figures["share"].values()) for figures in best.values()), default=None)
    figures["load_cores"] = {mode: figures["load_cores"] for mode, figures in best.items()}
    return figures


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("benchmarks.loop", __doc__)
    add, seconds, default = parser.add_argument, process.above(0.0), "(default: %(default)s)"
    add("--mode", choices=("both", *MODES), default="both", help=default)
    add("--rates", metavar="N[,N]", help=f"events a second (default: {RATES})")
    add("--seconds", type=seconds, default=180.0, metavar="S", help=f"of the highest rate that passes {default}")
    add("--step-s", type=seconds, default=20.0, metavar="S", help=f"of each other rate {default}")
    add(
        "--warm-s",
        type=seconds,
        default=WARM_S,
        metavar="S",
        help=f"at the lowest rate, before the first step {default}",
    )
    add("--sync-every", type=seconds, default=60.0, metavar="S", help=f"the platform's setting {default}")
    add("--source", default=SOURCE, help=default)
    add("--out", type=Path, default=RESULTS, help=default)
    args = parser.parse_args(argv)
    return process.run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
