"""The pages of docs/ are true: listed, linked, readable, and each begins with a command that exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from infra.cli import main as cli
from tests.support import PROJECT

DOCS = PROJECT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
ROOMS = ("benchmarks", "common", "dags", "delta_log", "features", "infra", "serving", "streaming", "training")
NEAR_TOP = 25
"""Lines of a page within which its first command stands."""


def text(page: str) -> str:
    return (DOCS / page).read_text()


def shell(page: str) -> list[str]:
    """The lines of the page's shell blocks."""
    return [line for block in re.findall(r"^```sh\n(.*?)^```", text(page), re.M | re.S) for line in block.splitlines()]


def subcommands() -> set[str]:
    (action,) = (a for a in cli.parser()._actions if a.choices and a.metavar == "COMMAND")  # noqa: SLF001
    return set(action.choices or ())


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_a_page_is_in_the_table_of_pages(page: str) -> None:
    assert re.search(rf"^\| .+\? \| \[{re.escape(page)}\]\({re.escape(page)}\) \|$", text("README.md"), re.M)


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text(page)):
        assert (DOCS / target).exists(), f"docs/{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_longer_than_a_screen(page: str) -> None:
    long = [line for line in text(page).splitlines() if len(line) > 120]
    assert not long, f"docs/{page}: {long}"


def test_no_line_of_the_readme_is_longer_than_a_screen() -> None:
    """Its tables, its tree and lines with an address are left out."""
    prose = re.sub(r"^```.*?^```$", "", (PROJECT / "README.md").read_text(), flags=re.M | re.S)
    long = [n for n in prose.splitlines() if len(n) > 120 and not n.startswith("|") and "http" not in n]
    assert not long


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_a_command_near_its_top(page: str) -> None:
    assert "```sh\n" in "\n".join(text(page).splitlines()[:NEAR_TOP]), f"docs/{page}"


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_exist(page: str) -> None:
    for module in re.findall(r"python -m ([a-z_]+(?:\.\w+)*)", text(page)):
        assert importlib.util.find_spec(module), f"docs/{page} names the module {module}"
    named = set(re.findall(r"(?:`|/|^|\s)minutehand ([a-z]+)\b", "\n".join([*shell(page), *code(page)]), re.M))
    assert named <= subcommands(), f"docs/{page} names minutehand {sorted(named - subcommands())}"
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M))
    made = set(re.findall(r"(?:`|^)make ([a-z]+)", "\n".join([*shell(page), *code(page)]), re.M))
    assert made <= targets, f"docs/{page} names make {sorted(made - targets)}"


@pytest.mark.parametrize("page", PAGES)
def test_the_flags_of_its_python_commands_exist(page: str) -> None:
    for line in re.sub(r" \\\n\s*", " ", "\n".join(shell(page))).splitlines():
        if command := re.search(r"python -m ([\w.]+)(.*)", line.split("  #")[0]):
            spec = importlib.util.find_spec(command[1])
            assert spec and spec.origin
            files = Path(spec.origin), Path(spec.origin).with_name("flags.py")
            source = "".join(file.read_text() for file in files if file.exists())
            for name in re.findall(r"(?<=\s)--([a-z_-]+)", command[2]):
                flag = re.search(rf'"--{name}"|shared\([^)]*"{name}"', source)
                assert flag, f"docs/{page}: {command[1]} has no --{name}"


@pytest.mark.parametrize("page", PAGES)
def test_the_code_that_a_page_names_exists(page: str) -> None:
    """Files by their path in the project, and `room.module.name`: the module defines the name."""
    for name in re.findall(r"`([^`\n]+)`", text(page)):
        if re.fullmatch(r"\w[\w-]*(/[\w-]+)+\.(py|java|h|cc|toml)", name):
            assert (PROJECT / name).is_file(), f"docs/{page} names {name}"
        if dotted := re.match(rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+", name):
            parts, path = dotted[0].split("."), PROJECT
            while parts and ((path / parts[0]).is_dir() or (path / f"{parts[0]}.py").is_file()):
                path = path / parts[0] if (path / parts[0]).is_dir() else path / f"{parts[0]}.py"
                parts = parts[1:]
            source = (path / "__init__.py" if path.is_dir() else path).read_text() if parts else ""
            assert all(re.search(rf"\b{part}\b", source) for part in parts), f"docs/{page} names {dotted[0]}"


def code(page: str) -> list[str]:
    """What stands in code style in the page's prose."""
    return re.findall(r"`[^`\n]+`", text(page))
