"""One exported base for all tests of serving that need a replica: an export takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import light
from tests.support.lineage import TOKEN, Lineage
from tests.support.rig import Rig, SharedServer, export


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lineage]:
    """A folder with log/ (one lineage, base 0) and models/ranker/served/<BASE>, and what the lineage holds."""
    folder = tmp_path_factory.mktemp("prepared")
    lineage = Lineage(folder / "log").serve()
    lineage.writer.close()
    export(folder / "log", folder / "models" / "ranker" / "served")
    return folder, lineage


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """One model server for the tests of a file."""
    server = SharedServer(tmp_path_factory.mktemp("shared"))
    yield server
    assert server.process.end() == 0, server.process.tail()
    assert TOKEN not in server.process.text()


@pytest.fixture
def rig(prepared: tuple[Path, Lineage], shared_server: SharedServer) -> Iterator[Rig]:
    """A copy of what was prepared, which the file's server serves."""
    light()
    rig = shared_server.rig(*prepared)
    yield rig
    rig.lineage.writer.close()


@pytest.fixture
def own_rig(prepared: tuple[Path, Lineage], tmp_path: Path) -> Iterator[Rig]:
    """A copy of what was prepared, for a test that starts and ends its own model server."""
    light()
    folder, lineage = prepared
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    rig = Rig(tmp_path, lineage.copy(tmp_path / "log"))
    yield rig
    rig.lineage.writer.close()
