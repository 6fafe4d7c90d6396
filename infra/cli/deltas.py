"""`minutehand deltas`: lists, verifies and explains what the delta log holds; see docs/delta.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from delta_log.log import Log
from delta_log.manifest import LogError
from delta_log.verification import explain, listing, verify
from infra.layout import Layout
from infra.platform import PlatformError
from infra.settings import Settings
from serving.signatures import RANKER


def add_parser(commands: Any) -> None:
    from infra.cli.main import settings_flags, settings_of

    p = commands.add_parser(
        "deltas",
        parents=[settings_flags()],
        help="list, verify and explain the delta log",
        description=(
            "Show what the delta log of a platform holds. It may be running or not.\n"
            "  list        one line a base or delta, newest last\n"
            "  verify      check every file, hash and link; exit code 1 if something is broken, which is named\n"
            "  explain N   what delta N changed (0: the first base), as JSON"
        ),
        epilog="example: minutehand deltas explain 12 --name demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("verb", choices=("list", "verify", "explain"), nargs="?", default="list", help="default: list")
    p.add_argument("seq", type=int, nargs="?", metavar="N", help="which delta to explain")
    p.add_argument("--model", default=RANKER, help="the name that the model is served under (default: %(default)s)")
    p.add_argument("--lineage", help="default: the one that is served")
    p.set_defaults(run=lambda args: run(args, settings_of(args)))


def run(args: argparse.Namespace, settings: Settings) -> int:
    log = Log(_log(settings, args.model))
    try:
        lineage = _lineage(log, args.lineage)
        if args.verb == "verify":
            problems = verify(log, lineage)
            print("\n".join(problems) if problems else f"{lineage}: {len(log.manifests(lineage))} manifests, all whole")
            return 1 if problems else 0
        if args.verb == "explain":
            print(json.dumps(explain(log, lineage, _seq(log, lineage, args.seq)), indent=2))
            return 0
        _print(lineage, listing(log, lineage))
        return 0
    except LogError as e:
        raise PlatformError(str(e)) from None


def _log(settings: Settings, model: str) -> Path:
    names = [m.name for m in settings.models]
    if model not in names:
        raise PlatformError(f"model is {model!r}; allowed are {', '.join(names)}")
    return Layout(settings).log(model)


def _lineage(log: Log, asked: str | None) -> str:
    known = log.lineages() if log.path.is_dir() else []
    lineage = asked or (log.serving() if known else None)
    if lineage is None or lineage not in known:
        raise PlatformError(f"lineage is {lineage!r}; allowed are {', '.join(known) or f'none: {log.path} is empty'}")
    return lineage


def _seq(log: Log, lineage: str, seq: int | None) -> int:
    there = log.seqs(lineage, "delta") + ([0] if 0 in log.seqs(lineage, "base") else [])
    if seq not in there:
        spread = f"{min(there)} to {max(there)}" if there else "none"
        raise PlatformError(f"N is {seq}; allowed are the deltas of {lineage}: {spread}")
    return seq


def _print(lineage: str, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=lineage, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "rows", "removed", "bytes", "learned", "auc", "loss"):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    for row in rows:
        figures = [f"{row[k]:.4f}" if isinstance(row.get(k), float) else "" for k in ("auc", "loss")]
        table.add_row(row["name"], *(f"{row[k]:,}" for k in ("rows", "removed", "bytes", "learned")), *figures)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
