from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.airflow_child import Airflow
from tests.support.facts import write_platform


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
