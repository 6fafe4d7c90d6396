"""Measures a model server: the tail of its predictions beside deltas, its rate, its start and its memory.

    python -m benchmarks.serving                                        # goals: see GOALS
    python -m benchmarks.serving --before ../before --server /usr/bin/tensorflow_model_server
    python -m benchmarks.serving --rows 20000 --delta-rows 5000 --rounds 1 --idle-s 0.5 --deltas 2 --closed-s 0.5

The servers: our own; with --before that of another checkout of this project; each tensorflow_model_server of --server.
They take turns, and each round is a new start with the same base: a million rows of 17 floats in one table.

A client process sends 200 predictions of 16 rows a second over gRPC, whether or not the last one is answered.
Meanwhile this process pushes deltas of 100,000 rows as sync does. Between two of them the server is idle, so that both
kinds of time see the same machine. A request belongs to a delta if it was open while the delta was pushed. The first
delta after the load has figures of its own. Then 1 and 4 clients send the same requests as fast as they are answered,
over gRPC and over REST.

It prints a table and writes benchmarks/results/serving.json, and its rows of docs/results.md. In the summary a ratio of
times is the median of the rounds' ratios, a rate is in requests a second, `available_s` is the seconds from the start
of the process until the version is AVAILABLE, and `rss_vs_rows` its resident memory / the bytes of the rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.common import pages  # noqa: E402
from benchmarks.common.figures import commit, machine, spread  # noqa: E402
from benchmarks.load import lineage  # noqa: E402
from benchmarks.load.client import RATE, ROWS, Call  # noqa: E402
from benchmarks.load.server import OURS, TOKEN, Clients, Contestant, Server  # noqa: E402
from common import process  # noqa: E402
from delta_log.changes import Changes, read_changes  # noqa: E402
from serving import client  # noqa: E402
from serving.replica import Replica  # noqa: E402
from serving.signatures import RANKER  # noqa: E402
from serving.sync import push  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "serving.json"
GOALS = {"p99_ratio": "<= 1.2", "first_delta_p99_ratio": "<= 1.2", "available_s": "<= 5"}
SETTLE_S = 1.0
"""Between the first answer of a server and the first figure."""
AFTER_S = 0.2
"""After a delta, until the requests that waited for it are answered."""
PHASES = ("idle", "applying", "first_delta")
RATES = [(kind, clients) for kind in ("grpc", "rest") for clients in (1, 4)]

Interval = tuple[float, float]


def within(calls: Sequence[Call], intervals: Sequence[Interval]) -> list[float]:
    """The milliseconds of the requests that were open in one of the intervals."""
    return [
        1000 * call.seconds
        for call in calls
        if any(call.due <= end and call.due + call.seconds >= begin for begin, end in intervals)
    ]


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    p50, p99, p999 = np.percentile(ms, (50, 99, 99.9))
    return {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "p99.9_ms": round(p999, 2), "requests": len(ms)}


def wait(seconds: float) -> Interval:
    begin = time.monotonic()
    time.sleep(seconds)
    return begin, time.monotonic()


def latencies(server: Server, version: int, deltas: Sequence[Changes], args: argparse.Namespace) -> dict[str, Any]:
    """Each phase's milliseconds, the failed requests, and the seconds of each delta."""
    replica = Replica(server.grpc, RANKER)
    with Clients(1, "paced", server.grpc, args.rows) as clients:
        clients.go()
        time.sleep(SETTLE_S)
        idle, pushes = [wait(args.idle_s)], []
        for delta in deltas:
            begin = time.monotonic()
            push.push(delta, replica, version, TOKEN)
            pushes.append((begin, time.monotonic()))
            time.sleep(AFTER_S)
            idle.append(wait(args.idle_s))
        calls = clients.calls()
    served = replica.status(version).seq
    replica.close()
    assert served == deltas[-1].manifest.seq, f"the server is at {served}"
    phases = {"idle": idle, "applying": pushes[1:], "first_delta": pushes[:1]}
    return {
        "ms": {phase: within(calls, intervals) for phase, intervals in phases.items()},
        "failed": sum(not call.ok for call in calls),
        "delta_s": [end - begin for begin, end in pushes],
    }


def rate(kind: str, number: int, address: str, args: argparse.Namespace) -> tuple[float, int]:
    """Requests a second of `number` clients, each of which waits for its answer; and the failed ones."""
    with Clients(number, kind, address, args.rows) as clients:
        clients.go()
        time.sleep(SETTLE_S / 4)
        begin = time.monotonic()
        time.sleep(args.closed_s)
        end = time.monotonic()
        calls = clients.calls()
    answered = [call for call in calls if call.ok and begin <= call.due + call.seconds <= end]
    return len(answered) / (end - begin), sum(not call.ok for call in calls)


def measured(contestant: Contestant, deltas: Sequence[Changes], args: argparse.Namespace) -> dict[str, Any]:
    """One round of one server."""
    with contestant.started() as server:
        figures = {"available_s": server.available_s, **latencies(server, contestant.version, deltas, args)}
        figures["resident"] = server.resident()
        for kind, number in RATES:
            figures[f"{kind}_{number}"], failed = rate(kind, number, getattr(server, kind), args)
            figures["failed"] += failed
    return figures


def summed_up(rounds: Sequence[dict[str, Any]], row_bytes: int) -> dict[str, Any]:
    """The figures of one server over its rounds."""
    p99 = [{phase: float(np.percentile(r["ms"][phase], 99)) for phase in PHASES} for r in rounds]
    ratios = {phase: [each[phase] / each["idle"] for each in p99] for phase in PHASES[1:]}
    rates = {f"{kind}_{number}": [r[f"{kind}_{number}"] for r in rounds] for kind, number in RATES}
    return {
        "summary": {
            "p99_ratio": round(median(ratios["applying"]), 2),
            "first_delta_p99_ratio": round(median(ratios["first_delta"]), 2),
            **{name: round(median(each)) for name, each in rates.items()},
            "available_s": round(median(r["available_s"] for r in rounds), 1),
            "rss_vs_rows": round(median(r["resident"] for r in rounds) / row_bytes, 1),
        },
        "latency": {phase: percentiles([ms for r in rounds for ms in r["ms"][phase]]) for phase in PHASES},
        "p99_ms": {phase: [round(each[phase], 2) for each in p99] for phase in PHASES},
        "requests_per_s": {name: spread(each, 0) for name, each in rates.items()},
        "delta_s": spread([s for r in rounds for s in r["delta_s"][1:]], 3),
        "first_delta_s": spread([r["delta_s"][0] for r in rounds], 3),
        "available_s": [round(r["available_s"], 1) for r in rounds],
        "resident_mb": [round(r["resident"] / 2**20) for r in rounds],
        "failed": sum(r["failed"] for r in rounds),
    }


def contestants(args: argparse.Namespace, folder: Path) -> list[Contestant]:
    """Our server, that of --before, and the binaries of --server. A checkout's model is exported by its own code."""
    chosen = [("ours", OURS, ROOT)]
    if args.before:
        chosen.append(("before", OURS, args.before.absolute()))
    chosen += [(str(binary), [str(binary.absolute())], ROOT) for binary in args.server]
    return [
        Contestant(name, command, checkout, folder / f"{i}" / RANKER)
        for i, (name, command, checkout) in enumerate(chosen)
    ]


def arguments() -> process.Arguments:
    parser = process.Arguments("benchmarks.serving", __doc__)
    count, seconds = process.at_least(1), process.at_least(0.1)
    flag, shown = parser.add_argument, "(default: %(default)s)"
    flag("--before", type=Path, metavar="DIR", help="another checkout of this project, whose server is measured, too")
    flag("--server", type=Path, metavar="PATH", action="append", default=[], help="a tensorflow_model_server; repeated")
    flag("--rows", type=count, default=1_000_000, help=f"rows of the large table {shown}")
    flag("--delta-rows", type=count, default=100_000, help=f"rows of a delta {shown}")
    flag("--rounds", type=count, default=3, help=f"starts of each server {shown}")
    flag("--deltas", type=process.at_least(2), default=6, help=f"deltas a round {shown}")
    flag("--idle-s", type=seconds, default=1.5, help=f"seconds before each delta and after the last one {shown}")
    flag("--closed-s", type=seconds, default=1.5, help=f"seconds of each rate {shown}")
    flag("--out", type=Path, default=RESULT)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    return process.run(lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    client.light()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="minutehand-serving-") as name:
        folder = Path(name)
        log, manifests = lineage.write(folder, args.rows, args.deltas, args.delta_rows)
        deltas = [read_changes(manifest) for manifest in manifests]
        base = log.manifest(lineage.LINEAGE, "base", 0)
        row_bytes = sum(4 * info.dim * info.rows for info in base.tables.values())
        servers = contestants(args, folder)
        for server in servers:
            server.export(log.path)
        rounds: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
        for number in range(args.rounds):
            for server in servers:
                print(f"round {number + 1}: {server.name}", file=sys.stderr, flush=True)
                rounds[server.name].append(measured(server, deltas, args))
    figures = {name: summed_up(each, row_bytes) for name, each in rounds.items()}
    result = {
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "commit": commit(),
        "before": commit(args.before) if args.before else "",
        "command": " ".join(["python -m benchmarks.serving", *sys.argv[1:]]),
        "machine": machine(),
        "load_average": round(load, 1),
        "rows": args.rows,
        "delta_rows": args.delta_rows,
        "chunk_rows": push.CHUNK_ROWS,
        "requests_per_s": RATE,
        "rows_per_request": ROWS,
        "rounds": args.rounds,
        "summary": figures["ours"]["summary"],
        "goals": GOALS,
        "times_faster": times_faster(rounds),
        "servers": figures,
    }
    args.out.parent.mkdir(exist_ok=True, parents=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(pages.serving(result))
    if args.out == RESULT:
        pages.write()


def times_faster(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Each other server: the spread of our rate / its rate, of the same round."""
    return {
        name: {
            rate: spread([ours[rate] / theirs[rate] for ours, theirs in zip(rounds["ours"], each, strict=True)], 2)
            for rate in (f"{kind}_{number}" for kind, number in RATES)
        }
        for name, each in rounds.items()
        if name != "ours"
    }


if __name__ == "__main__":
    sys.exit(main())
