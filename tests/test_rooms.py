"""The rooms of the house: no import runs upwards, no modules import each other in a circle, no folder is crowded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import PROJECT

MAY_IMPORT = {
    "common": set(),
    "streaming": {"common"},
    "delta_log": {"common"},
    "features": {"common", "streaming"},
    "feature_repo": {"common", "streaming", "features"},
    "training": {"common", "streaming", "delta_log", "features"},
    "serving": {"common", "streaming", "delta_log", "features", "training.models"},
    "infra": {"common", "streaming", "delta_log", "features", "training", "serving"},
    "dags": {"common", "streaming", "delta_log", "features", "training", "serving", "infra"},
}
"""Room -> the rooms that it may import, besides itself. Tests and benchmarks import them all."""
MOST_MODULES = 14
OF_THE_SHELL = re.compile(r"\bfcntl\.|os\.(replace|rename|fsync)\(|logging\.(basicConfig|getLogger)\(|signal\.signal\(")
BESIDE_THE_SHELL = {
    "common.process",
    "common.disk",
    "infra.supervise.manager",
    "infra.supervise.sentinel",
    "dags.common",
}
"""The shell itself; the supervisor, which forks and passes signals on; the DAGs, whose log is Airflow's."""


def modules_of(room: str) -> dict[str, Path]:
    """Dotted name -> file. A package is named like its folder."""
    files = sorted((PROJECT / room).rglob("*.py"))
    return {".".join(f.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


MODULES = {name: file for room in MAY_IMPORT for name, file in modules_of(room).items()}
TREES = {name: ast.parse(file.read_text()) for name, file in MODULES.items()}


def imported(name: str, statement: ast.stmt) -> Iterator[str]:
    """The modules of ours that an import statement of module `name` names."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom):
        assert not statement.level, f"{name}:{statement.lineno}: a relative import"
        source = statement.module or ""
        names = [inner if (inner := f"{source}.{alias.name}") in MODULES else source for alias in statement.names]
    else:
        return
    yield from (n for n in names if n.split(".")[0] in MAY_IMPORT)


def at_import_time(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported: not those of functions, nor those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(child, ast.stmt):
            yield child
        yield from at_import_time(child)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_import_runs_upwards(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    for name in modules_of(room):
        for node in ast.walk(TREES[name]):
            for other in imported(name, node) if isinstance(node, ast.stmt) else ():
                inside = any(f"{other}.".startswith(f"{prefix}.") for prefix in allowed)
                assert inside, f"{name} imports {other}; {room} may import {sorted(allowed)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name: {other for statement in at_import_time(tree) for other in imported(name, statement)} - {name}
        for name, tree in TREES.items()
    }
    TopologicalSorter(graph).prepare()  # a CycleError names the modules of the circle


def test_locks_renames_logs_and_signals_are_the_process_shells() -> None:
    """common.process and common.disk have them, once."""
    for name in MODULES.keys() - BESIDE_THE_SHELL:
        call = OF_THE_SHELL.search(MODULES[name].read_text())
        assert call is None, f"{name}: {call[0]}"


def test_no_folder_is_crowded() -> None:
    folders = {file.parent for file in MODULES.values()}
    crowded = {str(f.relative_to(PROJECT)): n for f in folders if (n := len(list(f.glob("*.py")))) > MOST_MODULES + 1}
    assert not crowded, f"allowed are {MOST_MODULES} modules and an __init__.py a folder"
