"""The README is true: its targets, commands and rooms are there, and every command is in it."""

from __future__ import annotations

import re

import pytest

from infra.cli import main as cli
from tests.support import PROJECT

README = (PROJECT / "README.md").read_text()
COMMANDS = ("up", "down", "status", "start", "restart", "logs", "demo", "pipeline", "deltas", "recommend")


def test_every_make_target_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`?make ([a-z]+)", README))
    assert {"demo", "test", "check"} <= named <= targets


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_it_and_its_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(rf"`[^`]*\b{command}\b[^`]*`", README)
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "example: minutehand" in text


def test_no_command_is_missing_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = re.findall(r"^    ([a-z]+)\s", capsys.readouterr().out, re.M)
    assert set(shown) == set(COMMANDS)


def test_the_rooms_of_its_tree_are_there() -> None:
    tree = README.split("## The house")[1].split("```")[1]
    rooms = re.findall(r"^(\w+)/", tree, re.M)
    assert rooms and all((PROJECT / room).is_dir() for room in rooms)
    made = {line.rstrip("/") for line in (PROJECT / ".gitignore").read_text().splitlines()}
    folders = {p.name for p in PROJECT.iterdir() if p.is_dir() and p.name not in made and not p.name.startswith(".")}
    assert folders == set(rooms)


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (PROJECT / target).exists(), target
