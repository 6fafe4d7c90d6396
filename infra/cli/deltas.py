"""`minutehand deltas`: lists, verifies and explains what the delta log holds; see docs/delta.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from delta_log.log import Log
from delta_log.verification import explain, listing, verify
from infra.cli.command import Justify, add, print_table, settings_of
from infra.layout import Layout
from infra.platform import PlatformError
from infra.settings import Settings
from serving.signatures import RANKER


def add_parser(commands: Any) -> None:
    p = add(
        commands,
        "deltas",
        run,
        "list, verify and explain the delta log",
        "Show what the delta log of a platform holds. It may be running or not.\n"
        "  list        one line a base or delta, newest last\n"
        "  verify      check every file, hash and link; exit code 1 if something is broken, which is named\n"
        "  explain N   what delta N changed (0: the first base), as JSON",
        "minutehand deltas explain 12 --name demo",
    )
    p.add_argument("verb", choices=("list", "verify", "explain"), nargs="?", default="list", help="default: list")
    p.add_argument("seq", type=int, nargs="?", metavar="N", help="which delta to explain")
    p.add_argument("--model", default=RANKER, help="the name that the model is served under (default: %(default)s)")
    p.add_argument("--lineage", help="default: the one that is served")


def run(args: argparse.Namespace) -> int:
    log = Log(_log(settings_of(args), args.model))
    lineage = _lineage(log, args.lineage)
    if args.verb == "verify":
        problems = verify(log, lineage)
        print("\n".join(problems) if problems else f"{lineage}: {len(log.manifests(lineage))} manifests, all whole")
        return 1 if problems else 0
    if args.verb == "explain":
        print(json.dumps(explain(log, lineage, _seq(log, lineage, args.seq)), indent=2))
    else:
        _print(lineage, listing(log, lineage))
    return 0


def _log(settings: Settings, model: str) -> Path:
    names = [m.name for m in settings.models]
    if model not in names:
        raise PlatformError(f"model is {model!r}; allowed are {', '.join(names)}")
    return Layout(settings).log(model)


def _lineage(log: Log, name: str | None) -> str:
    lineages = log.lineages() if log.path.is_dir() else []
    lineage = name or (log.serving() if lineages else None)
    if lineage is None or lineage not in lineages:
        raise PlatformError(
            f"lineage is {lineage!r}; allowed are {', '.join(lineages) or f'none: {log.path} is empty'}"
        )
    return lineage


def _seq(log: Log, lineage: str, seq: int | None) -> int:
    deltas = log.seqs(lineage, "delta") + ([0] if 0 in log.seqs(lineage, "base") else [])
    if seq not in deltas:
        spread = f"{min(deltas)} to {max(deltas)}" if deltas else "none"
        raise PlatformError(f"N is {seq}; allowed are the deltas of {lineage}: {spread}")
    return seq


def _print(lineage: str, manifests: list[dict[str, Any]]) -> None:
    counts, metrics = ("rows", "removed", "bytes", "learned"), ("auc", "loss")
    columns: dict[str, Justify] = {"name": "left", **dict.fromkeys((*counts, *metrics), "right")}
    rows = []
    for m in manifests:
        figures = [f"{m[k]:.4f}" if isinstance(m.get(k), float) else "" for k in metrics]
        rows.append([m["name"], *(f"{m[k]:,}" for k in counts), *figures])
    print_table(columns, rows, lineage)
