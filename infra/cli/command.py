"""The parts that subcommands share: flags that choose a platform, a help with an example, a table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from infra.settings import PROFILES, Settings, load

Justify = Literal["left", "right"]


def settings_flags() -> argparse.ArgumentParser:
    """A parent parser with --name, --settings and --set."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--name", help="the platform's name; its state lies in var/<name> (default: local)")
    parser.add_argument("--settings", metavar="FILE", help="settings file (default: minutehand.toml)")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="one setting, for once; may be repeated"
    )
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """The platform's settings. From now on this process calls its model servers as they ask for it (serving/tls.py),
    and reads profiles where they are."""
    name = [f"name={args.name}"] if args.name else []
    settings = load(args.settings, [*args.set, *name])
    os.environ.update(settings.tls_environment())
    if settings.profiles:
        os.environ[PROFILES] = settings.profiles
    return settings


def add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, text: str, example: str
) -> argparse.ArgumentParser:
    """Adds a subcommand with the flags above; `run` returns its exit code."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        parents=[settings_flags()],
        help=summary,
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def print_table(columns: Mapping[str, Justify], rows: Iterable[Iterable[str]], title: str | None = None) -> None:
    """Prints rows under the names of the columns. Without a terminal, a line may be 160 characters long."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, justify in columns.items():
        table.add_column(column, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
