"""The README is true: its targets, commands and rooms are there, and every command is in it."""

from __future__ import annotations

import re

import pytest

from infra.cli import main as cli
from tests.support import PROJECT
from tests.test_rooms import MODULES

README = (PROJECT / "README.md").read_text()
COMMANDS = "up down status start restart logs demo pipeline deltas recommend forget source ab".split()


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


def tree() -> dict[str, str]:
    """Path -> half a line, of each line of the file tree; a folder's path ends with a slash."""
    paths: dict[str, str] = {}
    above: list[str] = []
    for line in README.split("## The house")[1].split("```")[1].strip().splitlines():
        name, about = line.split(maxsplit=1)
        above[(len(line) - len(line.lstrip())) // 2 :] = [name]
        paths["".join(above)] = about
    return paths


def test_what_its_tree_names_is_there() -> None:
    assert all((PROJECT / path).is_dir() == path.endswith("/") and (PROJECT / path).exists() for path in tree())
    assert max(len(about) for about in tree().values()) <= 90


def test_no_room_is_missing_from_its_tree() -> None:
    made = {line.rstrip("/") for line in (PROJECT / ".gitignore").read_text().splitlines()}
    top = {p for p in PROJECT.iterdir() if p.is_dir() and p.name not in made and not p.name.startswith(".")}
    rooms = top | {file.parent for file in MODULES.values() if file.name != "__init__.py"}
    assert {f"{room.relative_to(PROJECT)}/" for room in rooms} <= tree().keys()


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (PROJECT / target).exists(), target
