from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archived
import pytest
from airflow_child import Airflow

DOCS = "http://127.0.0.1:18592"
FOLDERS = ("archive", "samples", "data_docs", "features", "log", "models")


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    with Airflow(tmp_path_factory.mktemp("airflow")) as child:
        yield child


@pytest.fixture(scope="session")
def second(airflow: Airflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """Another one, whose runs know nothing of the first one's: max_active_runs does not keep them apart."""
    with Airflow(tmp_path_factory.mktemp("second"), like=airflow) as child:
        yield child


@pytest.fixture
def platform(tmp_path: Path) -> Path:
    """platform.json of a platform that has folders and nothing else."""
    return write_platform(tmp_path)


def write_platform(folder: Path, addresses: dict[str, str] | None = None, **settings: Any) -> Path:
    defaults = {"source": archived.SOURCE, "replicas": 1, "sync_every": 60.0}
    facts = {
        "settings": defaults | {"gate_tolerance": 0.01, "gate_calibration": 1.25} | settings,
        "addresses": {"data-docs": DOCS} | (addresses or {}),
        "folders": {name: str(folder / name) for name in FOLDERS},
    }
    (folder / "platform.json").write_text(json.dumps(facts))
    return folder / "platform.json"
