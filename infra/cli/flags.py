"""The flags that every command has which works on a platform."""

from __future__ import annotations

import argparse

from infra.settings import Settings, load


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
    name = [f"name={args.name}"] if args.name else []
    return load(args.settings, [*args.set, *name])
