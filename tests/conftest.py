"""What all tests need: a shell that starts them in the background makes them ignore Ctrl-C, and their children too."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest

from tests.support import PROJECT
from tests.support.process import running
from tests.support.servers import Postgres, Redis

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()


def pytest_collection_finish() -> None:
    """The modules of all tests live to the end: from here on the garbage collector works, and leaves them out."""
    gc.freeze()
    gc.enable()


LONGEST = (
    "serving/sync/test_sync.py",
    "training/learn/test_online.py",
    "dags/test_train_and_publish.py",
    "infra/airflow/test_airflow_database.py",
    "infra/replay/test_replay.py",
    "training/pipeline/test_warm_start.py",
    "streaming/join/test_join_job.py",
    "dags/test_sample_examples.py",
    "serving/test_publish.py",
    "dags/test_features_and_watch.py",
    "training/record/test_tracking.py",
    "e2e/test_pipeline.py",
    "e2e/test_minute_loop.py",
    "e2e/test_demo.py",
    "e2e/test_readme_commands.py",
)
"""The files that take longest, longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with LONGEST: no worker starts on a long file when the others have nothing left to do."""
    place = {PROJECT / "tests" / name: k for k, name in enumerate(LONGEST)}
    assert all(path.exists() for path in place), "LONGEST names a file that is not there"
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all who ask; each makes a database of its own."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """One server for all who ask; each empties it first."""
    with Redis() as server:
        yield server


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    """What a wider fixture started before runs on."""
    before = set(running)
    yield
    for process in running - before:
        process.kill()
