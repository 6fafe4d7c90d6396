"""What all tests need: a shell that starts them in the background makes them ignore Ctrl-C, and their children too."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support.process import running
from tests.support.servers import Postgres

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all who ask; each makes a database of its own."""
    with Postgres() as server:
        yield server


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    """What a wider fixture started before runs on."""
    before = set(running)
    yield
    for process in running - before:
        process.kill()
