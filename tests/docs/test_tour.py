"""The tour is true: each file it names exists and defines each function or class it names beside it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support import PROJECT

TOUR = (PROJECT / "docs" / "tour.md").read_text()
FILE = re.compile(r"[\w./-]+\.(?:py|java)")
NAME = re.compile(r"(?:[A-Z]\w*\.)?[A-Za-z_]\w+")
STEPS = re.findall(r"^\*\*(\d+)\. .*?(?=^\*\*\d+\. |^## |\Z)", TOUR, re.M | re.S)
WORDS = {"impression_id", "impressions", "actions", "examples", "sync_every", "status", "seq", "apply_delta", "outputs"}
"""Words in code style that are no names of the code."""


def named() -> dict[str, set[str]]:
    """File -> the functions and classes that the tour names after it, up to the next file or the step's end."""
    names: dict[str, set[str]] = {}
    for step in re.split(r"^(?=\*\*\d+\. |## )", TOUR, flags=re.M):
        file = ""
        for code in re.findall(r"`([^`\n]+)`", step):
            if FILE.fullmatch(code):
                file = code
                names.setdefault(file, set())
            elif file and NAME.fullmatch(code) and code not in WORDS:
                names[file].add(code)
    return names


def defined(path: Path) -> set[str]:
    """The functions and classes of a file: `name`, and `Class.name` of a method."""
    if path.suffix == ".java":
        text = path.read_text()
        return set(re.findall(r"^ {4}(?:[\w<>\[\], .?]+ )?(\w+)\([^)]*\)[^;{]*\{", text, re.M))
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("file", sorted(named()))
def test_a_file_of_the_tour_defines_what_the_tour_names(file: str) -> None:
    path = PROJECT / file
    assert path.is_file(), f"docs/tour.md names {file}, which is not there"
    missing = named()[file] - defined(path)
    assert not missing, f"docs/tour.md names {sorted(missing)}, which {file} does not define"


def test_every_step_names_a_file_and_a_function() -> None:
    assert [int(number) for number in STEPS] == list(range(1, len(STEPS) + 1)) and len(STEPS) >= 10
    for step in re.split(r"^(?=\*\*\d+\. )", TOUR, flags=re.M)[1:]:
        codes = [code for code in re.findall(r"`([^`\n]+)`", step) if code not in WORDS]
        assert any(FILE.fullmatch(c) for c in codes) and any(NAME.fullmatch(c) for c in codes), step[:60]
