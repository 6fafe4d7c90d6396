"""One exported base for all tests of serving that need a replica: an export takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import light
from tests.support.lineage import Lineage
from tests.support.rig import Rig, export


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lineage]:
    """A folder with log/ (one lineage, base 0) and models/ranker/served/<BASE>, and what the lineage holds."""
    folder = tmp_path_factory.mktemp("prepared")
    lineage = Lineage(folder / "log").serve()
    lineage.writer.close()
    export(folder / "log", folder / "models" / "ranker" / "served")
    return folder, lineage


@pytest.fixture
def rig(prepared: tuple[Path, Lineage], tmp_path: Path) -> Iterator[Rig]:
    """A copy of what was prepared; what a test started is ended."""
    light()
    folder, known = prepared
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    made = Rig(tmp_path, known.copy(tmp_path / "log"))
    yield made
    for process in made.running:
        if process.popen.poll() is None:
            process.kill()
    made.lineage.writer.close()
